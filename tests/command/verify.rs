//! `--verify`, and what the host says of its own mapping: in whole runs.

use serde_json::Value;

use crate::engines::{Engine, kvm, on_every_engine};
use crate::guests::{number, reported};

#[test]
fn a_storm_that_is_stopped_now_and_then_is_compared_each_time_and_nothing_differs() {
    on_every_engine(|engine| {
        for superpages in ["on", "off"] {
            let words = format!(
                "-c 2 -m 64 --guest storm --storm-invalidations 100 --superpages {superpages} --verify --timeout 300"
            );
            let (ran, report) = reported(engine, &format!("verified-{superpages}"), &words);
            assert_eq!(ran.status, 0, "{words}: {}", ran.stderr);
            let verified = &report["verified"];
            // More than the one at the end.
            let comparisons = number(&verified["comparisons"]);
            assert!(comparisons > 1, "{words}: {verified}");
            assert_eq!(number(&verified["compared_pages"]), comparisons * (64 << 20) / 4096);
            assert_eq!(number(&verified["count"]), 0, "{words}: {verified}");
            assert!(
                ran.stderr.contains(&format!("  verified    {comparisons} times, ")),
                "{}",
                ran.stderr
            );
        }
    });
}

#[test]
fn a_mirror_that_leaves_the_host_mapping_alone_is_found() {
    let Some(_cpus) = kvm() else { return };
    let words = "-c 2 -m 64 --guest storm --test-switch keep-host-mappings --verify --timeout 400";
    let (ran, report) = reported(Engine::Kvm, "verified-broken", words);
    // The guest's own finding is the outcome; what it met is named beside it.
    assert_eq!(ran.status, 5, "{}", ran.stderr);
    let verified = &report["verified"];
    let (count, kept) = (number(&verified["count"]), verified["differences"].as_array());
    let kept = kept.expect("differences");
    assert!(count > 0 && kept.len() as u64 <= count.min(20), "{verified}");
    assert!(kept.iter().any(|one| one["theirs"] == "the host maps it"), "{verified}");
    let sentence = format!("the host disagree in {count} places (--verify)");
    assert!(ran.stderr.contains(&sentence), "{}", ran.stderr);
}

/// Bytes of superpages that our tables have, and what the host says.
fn huge(report: &Value) -> (u64, &Value) {
    (number(&report["space"]["pmap"]["superpages"]) << 21, &report["host_mapping"])
}

#[test]
fn where_our_tables_have_superpages_the_host_says_that_its_mapping_is_huge() {
    on_every_engine(|engine| {
        let run = |superpages| {
            let words = format!("--guest toucher --superpages {superpages} --timeout 60");
            let (ran, report) = reported(engine, &format!("huge-{superpages}"), &words);
            assert_eq!(ran.status, 0, "{}", ran.stderr);
            assert!(ran.stderr.contains("  host maps   "), "{}", ran.stderr);
            report
        };
        let report = run("on");
        let (ours, theirs) = huge(&report);
        let view = &theirs["view"];
        assert!(number(&view["rss_bytes"]) > 0, "{theirs}");
        // The software engine promotes whatever the host does.
        if engine == Engine::Kvm {
            assert_eq!(number(&view["shmem_huge_bytes"]), ours, "{theirs}");
            let kvm = &theirs["kvm"];
            assert!(kvm.is_null() || ours == 0 || number(&kvm["pages_2m"]) > 0, "{theirs}");
        } else {
            assert!(theirs["kvm"].is_null(), "{theirs}");
        }
        let report = run("off");
        let (ours, theirs) = huge(&report);
        assert_eq!((ours, number(&theirs["view"]["shmem_huge_bytes"])), (0, 0), "{theirs}");
        if engine == Engine::Kvm && !theirs["kvm"].is_null() {
            assert_eq!(number(&theirs["kvm"]["pages_2m"]), 0, "{theirs}");
            assert!(number(&theirs["kvm"]["pages_4k"]) > 0, "{theirs}");
        }
    });
}
