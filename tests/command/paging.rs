//! Memory that leaves, bits that say who used what, and superpages: through the command, on every engine.

use serde_json::Value;

use crate::engines::{Engine, on_every_engine, skipped};
use crate::guests::{in_use, number, reported, storm};
use crate::support::scratch;

/// The layouts of the nested tables that an engine can have.
fn layouts(engine: Engine) -> Vec<(&'static str, &'static str)> {
    let ways: &[&str] = match engine {
        // KVM's own tables are hidden: see `bad_input`.
        Engine::Kvm => &["emulated"],
        Engine::Soft => &["emulated", "hw"],
    };
    ways.iter().flat_map(|way| [(*way, "on"), (*way, "off")]).collect()
}

fn of_pmap(report: &Value, name: &str) -> u64 {
    number(&report["space"]["pmap"][name])
}

fn of_reclaim(report: &Value, name: &str) -> u64 {
    number(&report["space"]["reclaim"][name])
}

#[test]
fn a_storm_under_every_layout_reports_what_the_pmap_did_to_its_pages() {
    on_every_engine(|engine| {
        for (way, leaves) in layouts(engine) {
            let swap = scratch(&format!("storm-{engine}-{way}-{leaves}.swap"));
            let words = format!(
                "-c 4 -m 256 --guest storm --storm-invalidations 100 --ad {way} --superpages {leaves} --swap {swap} --verify"
            );
            let (ran, report) = storm(engine, &format!("paging-{way}-{leaves}"), &words);
            assert!(in_use(&report) >= 100, "{words}: {}", report["storm"]);
            for name in ["harvests", "harvested_accessed_pages", "harvested_modified_pages"] {
                assert!(of_pmap(&report, name) > 0, "{words}: {name}: {}", report["space"]);
            }
            // Where pages are in such use, most that leave are wanted before they are gone.
            let out = of_reclaim(&report, "pages_out") + of_reclaim(&report, "rescued_pages");
            assert!(out > 0, "{words}: {}", report["space"]["reclaim"]);
            let bit_faults =
                of_pmap(&report, "accessed_faults") + of_pmap(&report, "modified_faults");
            assert_eq!(bit_faults > 0, way == "emulated", "{words}: {}", report["space"]["pmap"]);
            let superpages =
                of_pmap(&report, "promotions") + of_pmap(&report, "superpages_entered");
            match leaves {
                "on" => {
                    assert!(superpages > 0, "{words}: {}", report["space"]["pmap"]);
                    assert!(of_pmap(&report, "demotions") > 0, "{words}: {}", report["space"]);
                    assert!(ran.stderr.contains("  superpages  "), "{}", ran.stderr);
                }
                _ => assert_eq!(superpages, 0, "{words}: {}", report["space"]["pmap"]),
            }
            assert!(ran.stderr.contains("  a/d bits    "), "{}", ran.stderr);
            assert_eq!(number(&report["verified"]["count"]), 0, "{}", report["verified"]);
            assert!(ran.stderr.contains(" superpages: 0 differences"), "{}", ran.stderr);
        }
    });
}

#[test]
fn a_storm_that_is_looked_at_every_ten_milliseconds_ends_well_and_its_working_set_is_plotted() {
    on_every_engine(|engine| {
        let words = "-c 4 --guest storm --harvest-every 10 --storm-invalidations 200";
        let (ran, report) = storm(engine, "looked-at", words);
        let samples = report["space"]["working_set"].as_array().cloned().unwrap_or_default();
        assert!(samples.len() > 1, "{}", report["space"]);
        let times: Vec<_> = samples.iter().map(|sample| number(&sample["time_ns"])).collect();
        assert!(times.is_sorted(), "{times:?}");
        assert!(samples.iter().any(|sample| number(&sample["accessed_pages"]) > 0), "{samples:?}");
        assert!(ran.stderr.contains("  working set "), "{}", ran.stderr);
        assert!(ran.stderr.contains('█'), "{}", ran.stderr);
    });
}

#[test]
fn a_storm_with_a_small_limit_and_a_swap_file_ends_well() {
    on_every_engine(|engine| {
        let swap = scratch(&format!("storm-small-{engine}.swap"));
        let words = format!(
            "-c 4 --guest storm --resident 8M --swap {swap},size=64M --storm-invalidations 200"
        );
        let (_, report) = storm(engine, "storm-small", &words);
        assert!(in_use(&report) >= 200, "{}", report["storm"]);
        assert!(of_reclaim(&report, "peak_bytes") <= 8 << 20, "{}", report["space"]["reclaim"]);
    });
}

#[test]
fn a_guest_that_touches_more_than_may_stay_runs_within_its_limit() {
    const LIMIT: u64 = 16 << 20;
    on_every_engine(|engine| {
        let swap = scratch(&format!("toucher-{engine}.swap"));
        let words = format!(
            "-m 64 --guest toucher --resident {LIMIT_MIB}M --swap {swap} --timeout 200",
            LIMIT_MIB = LIMIT >> 20
        );
        let (ran, report) = reported(engine, "toucher-limited", &words);
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        assert_eq!(number(&report["resident_limit_bytes"]), LIMIT);
        // It writes to nearly all of its 16,384 pages, once each.
        let out = of_reclaim(&report, "pages_out");
        assert!(out >= 10_000, "{}", report["space"]["reclaim"]);
        let peak = of_reclaim(&report, "peak_bytes");
        assert!(peak <= LIMIT / 10 * 11, "{peak} bytes");
        assert!(number(&report["space"]["resident_bytes"]) <= LIMIT, "{}", report["space"]);
        assert!(ran.stderr.contains("of 16.0 MiB allowed"), "{}", ran.stderr);
        ran.observed()
    });
}

#[test]
fn a_guest_of_reserved_huge_pages_has_all_of_them_from_the_start_and_gives_all_of_them_back() {
    const NEEDED: u64 = 8;
    let free = || {
        let text =
            std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
        text.ok().and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    // Reserving some here would take them from whoever else runs on this machine.
    if free() < NEEDED {
        return skipped(
            "at all: the host has no 8 reserved huge pages (sudo sysctl vm.nr_hugepages=8)",
        );
    }
    on_every_engine(|engine| {
        let words = "-m 16 --guest toucher --huge-pages reserved --verify --timeout 60";
        let (ran, report) = reported(engine, "reserved", words);
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        assert_eq!(report["huge_pages"], "reserved");
        let (space, mapping) = (&report["space"], &report["host_mapping"]);
        assert_eq!(number(&space["resident_bytes"]), NEEDED << 21, "{space}");
        assert_eq!(number(&space["faults"]["total"]), 0, "{space}");
        assert_eq!(of_pmap(&report, "superpages"), NEEDED, "{space}");
        // KVM's view is mapped as a whole; the software engine touches what it uses.
        let mapped = number(&mapping["view"]["reserved_huge_bytes"]);
        assert!(mapped > 0 && (engine == Engine::Soft || mapped == NEEDED << 21), "{mapping}");
        assert_eq!(number(&report["verified"]["count"]), 0, "{}", report["verified"]);
        assert!(ran.stderr.contains("16.0 MiB given in reserved huge pages"), "{}", ran.stderr);
        assert!(free() >= NEEDED, "some were not given back");
        ran.observed()
    });
}

/// Which transitions a tour visited, and which it skipped.
fn visited(report: &Value) -> (Vec<String>, Vec<String>) {
    let transitions = report["tour"]["transitions"].as_array().expect("a tour");
    let name = |visit: &Value| visit["transition"].as_str().expect("a name").to_owned();
    let (skipped, visited): (Vec<_>, Vec<_>) =
        transitions.iter().partition(|visit| visit["skipped"].is_string());
    (visited.into_iter().map(name).collect(), skipped.into_iter().map(name).collect())
}

#[test]
fn a_tour_visits_every_transition_under_every_layout() {
    on_every_engine(|engine| {
        let mut all = Vec::new();
        for (way, leaves) in layouts(engine) {
            let swap = scratch(&format!("tour-{engine}-{way}-{leaves}.swap"));
            let words = format!(
                "-c 2 -m 64 --guest tour --ad {way} --superpages {leaves} --swap {swap} --timeout 200"
            );
            let (ran, report) = reported(engine, &format!("tour-{way}-{leaves}"), &words);
            assert_eq!(ran.status, 0, "{words}: {}", ran.stderr);
            assert!(ran.stdout.contains("every page was what it should be"), "{}", ran.stdout);
            let (visited, skipped) = visited(&report);
            for name in &skipped {
                let depends_on_the_layout =
                    ["superpage", "512 pages", "aged"].iter().any(|word| name.contains(word));
                assert!(depends_on_the_layout, "{words}: {name} was skipped");
                assert!(ran.stderr.contains(name.as_str()), "{}", ran.stderr);
            }
            assert!(leaves == "off" || skipped.len() == 2, "{words}: {skipped:?}");
            all.push((way, leaves, visited));
        }
        // Whether an execution is seen depends on the engine, for one.
        all.into_iter()
            .filter(|(way, ..)| *way == "emulated")
            .map(|(.., visited)| visited.len())
            .collect::<Vec<_>>()
    });
}

#[test]
fn a_tour_without_a_swap_file_says_what_it_cannot_show() {
    on_every_engine(|engine| {
        let (ran, report) = reported(engine, "tour-bare", "-m 64 --guest tour --timeout 200");
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        let (visited, skipped) = visited(&report);
        assert!(skipped.iter().any(|name| name.contains("disk")), "{skipped:?}");
        assert!(ran.stderr.contains("skipped: there is no --swap FILE"), "{}", ran.stderr);
        (visited.len(), skipped.len())
    });
}

#[test]
fn a_tour_with_somebody_else_who_moves_its_pages_is_refused() {
    for option in ["--resident 32M", "--harvest-every 10", "-S"] {
        let ran = crate::support::skep(&format!("run -m 64 --guest tour {option}"));
        assert_eq!(ran.status, 2, "{option}: {}", ran.stderr);
        let name = option.split(' ').next().unwrap_or(option);
        assert!(ran.stderr.contains(&format!("{name} would move them")), "{}", ran.stderr);
    }
}
