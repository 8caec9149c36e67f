//! Accessed and modified bits: who sets them, and what a harvest takes.

use actors::PageSize;
use actors::contract::page::Touch;

use super::super::content;
use super::super::sight::{Kind, Sight};
use super::{Act, Amount, Counter, Found, Guide};

/// All of them.
pub(super) fn all(guide: &mut Guide) {
    let used = Sight::of(Kind::Dirty).mapped(PageSize::Size4KiB).accessed(true);
    let aged = Sight::of(Kind::Dirty).accessed(false);
    let harvests = |times| (Counter::Harvests, Amount::Exactly(times));
    let emulated = u64::from(guide.setting.emulated);
    let fresh = |faults| (Counter::Faults, Amount::Exactly(1 + faults * emulated));

    let page = guide.page();
    let at = page.start();
    let acts = vec![
        guide.write(page, content(30)),
        Act::Harvest(page, Touch::ACCESSED, Found::accessed(true)),
        Act::See(at, aged),
        Act::Harvest(page, Touch::ACCESSED, Found::accessed(false)),
        guide.read(page, content(30)),
        Act::See(at, used),
        Act::Harvest(page, Touch::ACCESSED, Found::accessed(true)),
    ];
    guide.add(
        "accessed -> aged, by a harvest -> accessed, by a read",
        acts,
        &[harvests(3), fresh(1)],
    );

    // Emulated, accessed is the right to read; where a page may be executed and not read, an execution sets nothing.
    for (is_seen, name, why_not) in [
        (
            true,
            "aged -> accessed, by an execution",
            "tables that emulate, with execute-only, miss it",
        ),
        (false, "aged -> executed, and aged still", "no tables that emulate, with execute-only"),
    ] {
        let page = guide.page();
        let at = page.start();
        let acts = vec![
            guide.write(page, content(31)),
            Act::Harvest(page, Touch::ACCESSED, Found::accessed(true)),
            guide.execute(page, 31),
            Act::See(at, if is_seen { used } else { aged }),
        ];
        let why_not = (guide.setting.sees_executions != is_seen).then_some(why_not);
        let faults = if is_seen { fresh(1) } else { fresh(0) };
        guide.add_unless(why_not, name, acts, &[harvests(1), faults]);
    }

    let page = guide.page();
    let at = page.start();
    let acts = vec![
        guide.write(page, content(32)),
        Act::Harvest(page, Touch::MODIFIED, Found::modified(true)),
        Act::See(at, used.modified(false).writable(true)),
        guide.read(page, content(32)),
        Act::Harvest(page, Touch::MODIFIED, Found::modified(false)),
        guide.write(page, content(33)),
        Act::See(at, used.modified(true)),
        Act::Harvest(page, Touch::MODIFIED, Found::modified(true)),
        guide.read(page, content(33)),
    ];
    guide.add(
        "modified -> not, by a harvest -> modified, by a write",
        acts,
        &[harvests(3), fresh(1)],
    );

    let page = guide.page();
    let at = page.start();
    let both = Touch::ACCESSED | Touch::MODIFIED;
    let acts = vec![
        guide.write(page, content(34)),
        Act::Harvest(page, both, Found { accessed: Some(true), modified: Some(true) }),
        Act::See(at, aged.modified(false)),
        guide.write(page, content(35)),
        Act::See(at, used.modified(true)),
        Act::Harvest(page, both, Found { accessed: Some(true), modified: Some(true) }),
        Act::Harvest(page, both, Found { accessed: Some(false), modified: Some(false) }),
    ];
    guide.add(
        "accessed and modified -> neither -> both, by a write",
        acts,
        &[harvests(3), fresh(1)],
    );

    // A page that was stored to differs from its copy, whoever took its bit meanwhile.
    let page = guide.page();
    let at = page.start();
    let acts = vec![
        guide.write(page, content(36)),
        Act::Harvest(page, both, Found { accessed: Some(true), modified: Some(true) }),
        guide.read(page, content(36)),
        Act::See(at, used.modified(false)),
    ];
    guide.add(
        "neither -> accessed, by a read, and dirty all the while",
        acts,
        &[harvests(1), fresh(1)],
    );

    // One shootdown for all of a range.
    let pages = guide.pages(16);
    let acts = vec![
        guide.write(pages, content(37)),
        Act::Harvest(pages, both, Found { accessed: Some(true), modified: Some(true) }),
        guide.read(pages, content(37)),
        Act::Harvest(pages, both, Found { accessed: Some(true), modified: Some(false) }),
    ];
    let counts = [
        (Counter::Shootdowns, Amount::Exactly(2)),
        (Counter::Faults, Amount::Exactly(16 + 16 * emulated)),
    ];
    guide.add("16 pages at once, with one shootdown a harvest", acts, &counts);
}
