//! The summary's lines about superpages, accessed and dirty bits, the working set, and memory that left. Each is
//! there only when there is something to say.

use actors::PAGE_SIZE;
use actors::contract::page::{PmapTally, ReclaimTally, WorkingSetSample};
use actors::contract::space::SpaceTally;

use super::{size, time};

/// As many columns as fit beside the words of a terminal's line.
const COLUMNS: usize = 60;
/// From the least to the most.
const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// All of them.
pub(super) fn lines(space: &SpaceTally, limit: Option<u64>) -> Vec<String> {
    let mut lines = Vec::new();
    lines.extend(superpages(&space.pmap));
    lines.extend(accessed_dirty(&space.pmap));
    lines.extend(reclaim(&space.reclaim));
    lines.extend(kept(&space.reclaim, limit));
    lines.extend(working_set(&space.working_set, space.late_looks));
    lines
}

fn superpages(pmap: &PmapTally) -> Option<String> {
    let PmapTally { superpages, promotions, superpages_entered: entered, demotions, .. } = pmap;
    let mut failures: Vec<_> = pmap.promotion_failures.iter().collect();
    failures.retain(|(_, times)| **times > 0);
    if *promotions == 0 && *entered == 0 && failures.is_empty() {
        return None;
    }
    let mut line = format!(
        "  superpages  {superpages} at the end: {promotions} promotions, {entered} entered whole, {demotions} demotions"
    );
    if !failures.is_empty() {
        let causes: Vec<_> =
            failures.iter().map(|(cause, times)| format!("{times} {cause}")).collect();
        line += &format!("; not promoted: {}", causes.join(", "));
    }
    Some(line)
}

fn accessed_dirty(pmap: &PmapTally) -> Option<String> {
    let (accessed, modified) = (pmap.accessed_faults, pmap.modified_faults);
    if accessed == 0 && modified == 0 && pmap.harvests == 0 {
        return None;
    }
    let mut line = format!("  a/d bits    {accessed} accessed and {modified} modified by faults");
    if pmap.harvests > 0 {
        line += &format!(
            "; {} harvests of {} used and {} stored to",
            pmap.harvests,
            pages(pmap.harvested_accessed_pages),
            pages(pmap.harvested_modified_pages)
        );
    }
    Some(line)
}

fn reclaim(reclaim: &ReclaimTally) -> Option<String> {
    if reclaim.pages_out == 0 {
        return None;
    }
    Some(format!(
        "  paging      {} out ({} zero, {} clean, {} rescued), {} in ({} compressed, {} from disk, {} ahead)",
        pages(reclaim.pages_out),
        reclaim.zero_pages_out,
        reclaim.clean_pages_out,
        reclaim.rescued_pages,
        reclaim.pages_in,
        reclaim.compressed_pages_in,
        reclaim.disk_pages_in,
        reclaim.readahead_hits,
    ))
}

fn kept(reclaim: &ReclaimTally, limit: Option<u64>) -> Option<String> {
    if reclaim.pages_out == 0 && limit.is_none() {
        return None;
    }
    let peak = size(reclaim.peak_bytes);
    let peak = match limit {
        Some(limit) => format!("at most {peak} in memory, of {} allowed", size(limit)),
        None => format!("at most {peak} in memory"),
    };
    Some(format!(
        "  kept        {peak}; at the end {} in {} compressed, {} on disk",
        pages(reclaim.compressed_pages),
        size(reclaim.compressed_bytes),
        pages(reclaim.disk_pages)
    ))
}

/// A column for each look, or for several where there were many: the most that any of them found.
fn working_set(samples: &[WorkingSetSample], late: u64) -> Option<String> {
    let (first, last) = (samples.first()?, samples.last()?);
    let most = samples.iter().map(|sample| sample.accessed_pages).max().unwrap_or(0);
    let together = samples.len().div_ceil(COLUMNS);
    let columns = samples.chunks(together);
    let highest = |column: &[WorkingSetSample]| {
        column.iter().map(|sample| sample.accessed_pages).max().unwrap_or(0)
    };
    let plot: String = columns.map(|column| block(highest(column), most)).collect();
    let over = time(last.time_ns.saturating_sub(first.time_ns));
    let resident = samples.iter().map(|sample| sample.resident_pages).max().unwrap_or(0);
    let late = if late == 0 {
        String::new()
    } else {
        format!(", {late} of them late, or they had cost the guest too much")
    };
    Some(format!(
        "  working set {plot} at most {} between two looks, of {} resident; {} looks in {over}{late}",
        size(most.saturating_mul(PAGE_SIZE)),
        size(resident.saturating_mul(PAGE_SIZE)),
        samples.len(),
    ))
}

fn block(pages: u64, most: u64) -> char {
    let step = u128::from(pages) * (BLOCKS.len() as u128 - 1);
    let step = step.div_ceil(u128::from(most.max(1)));
    let step = usize::try_from(step).unwrap_or(0).min(BLOCKS.len() - 1);
    BLOCKS[step]
}

fn pages(count: u64) -> String {
    if count == 1 { "1 page".to_owned() } else { format!("{count} pages") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(accessed: &[u64]) -> Vec<WorkingSetSample> {
        (1..)
            .zip(accessed)
            .map(|(look, &accessed_pages)| WorkingSetSample {
                time_ns: look * 1_000_000,
                accessed_pages,
                resident_pages: 1 << 10,
            })
            .collect()
    }

    #[test]
    fn a_run_without_any_of_it_says_nothing() {
        assert_eq!(lines(&SpaceTally::default(), None), Vec::<String>::new());
    }

    #[test]
    fn the_working_set_is_a_column_for_each_look_up_to_the_most() {
        let line = working_set(&samples(&[0, 1, 256, 512]), 0).unwrap();
        assert!(line.contains(" ▁▂▅█ at most 2.0 MiB "), "{line}");
        assert!(line.ends_with("of 4.0 MiB resident; 4 looks in 3.0 ms"), "{line}");
        assert!(!line.contains("late"));
        let late = working_set(&samples(&[1, 2]), 3).unwrap();
        assert!(late.contains("3 of them late"), "{late}");
        let idle = working_set(&samples(&[0, 0]), 0).unwrap();
        assert!(idle.contains(" ▁▁ at most 0 KiB "), "{idle}");
    }

    #[test]
    fn many_looks_share_columns_and_none_is_left_out() {
        let mut accessed = vec![1; 1_000];
        accessed[499] = u64::MAX;
        let line = working_set(&samples(&accessed), 0).unwrap();
        let plot: Vec<char> = line.chars().filter(|c| BLOCKS.contains(c)).collect();
        assert!(plot.len() <= COLUMNS, "{line}");
        assert_eq!(plot.iter().filter(|c| **c == '█').count(), 1, "{line}");
    }

    #[test]
    fn what_left_memory_and_what_may_stay_are_said_apart() {
        let mut space = SpaceTally::default();
        space.reclaim.pages_out = 1;
        space.reclaim.peak_bytes = 6 << 20;
        space.pmap.promotion_failures.insert("not all dirty".to_owned(), 2);
        space.pmap.promotion_failures.insert("held".to_owned(), 0);
        let lines = lines(&space, Some(8 << 20));
        assert_eq!(lines.len(), 3, "{lines:#?}");
        assert!(lines[0].ends_with("not promoted: 2 not all dirty"), "{lines:#?}");
        assert!(lines[1].contains("  1 page out (0 zero"), "{lines:#?}");
        assert!(lines[2].contains("at most 6.0 MiB in memory, of 8.0 MiB allowed"), "{lines:#?}");
    }
}
