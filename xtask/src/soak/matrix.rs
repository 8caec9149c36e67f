//! Which runs there are, and what each is given.

use std::time::Duration;

/// Where the guest's report goes, in the folder a run works in.
pub(super) const REPORT: &str = "report.json";

/// Where its memory goes.
pub(super) const SWAP: &str = "guest.swap";

/// What of its memory may be resident, in MiB.
pub(super) const RESIDENT_MIB: u64 = 128;

/// Files of random data, 25 MiB each.
pub(super) const FILES: u64 = 12;

/// All of the random data, in bytes: each file is 37 bytes longer than the one before.
pub(super) const DATA_BYTES: u64 = FILES * (25 << 20) + 37 * FILES * (FILES - 1) / 2;

/// How often it is read again.
pub(super) const PASSES: u64 = 2;

/// How long the guest rests before it reads again, in seconds: longer than any two pageouts of all memory are apart.
const REST: u64 = 20;

/// A run ends itself by now: in seconds, on this engine. (The lab is slow: four vcpus take turns on its one emulated processor.)
fn timeout(engine: &str) -> u64 {
    if engine == "kvm" { 2_800 } else { 1_400 }
}

/// The longest that one run may take on this engine.
pub(super) fn limit(engine: &str) -> Duration {
    Duration::from_secs(timeout(engine) + 60)
}

/// What guests boot.
#[derive(Clone, Debug)]
pub(super) struct Images {
    pub(super) kernel: String,
    pub(super) initrd: String,
}

/// One kind of run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Case {
    engine: &'static str,
    ad: &'static str,
    superpages: &'static str,
    vcpus: u32,
}

/// All of an engine's.
pub(super) fn all(engine: &'static str) -> Vec<Case> {
    // KVM's own tables are hidden, so it has no --ad hw.
    let ways: &[&str] = if engine == "kvm" { &["emulated"] } else { &["emulated", "hw"] };
    let mut cases = Vec::new();
    for vcpus in [1, 4] {
        for &ad in ways {
            for superpages in ["on", "off"] {
                cases.push(Case { engine, ad, superpages, vcpus });
            }
        }
    }
    cases
}

impl Case {
    /// What it is called.
    pub(super) fn name(&self) -> String {
        let Self { engine, ad, superpages, vcpus } = self;
        let plural = if *vcpus == 1 { "" } else { "s" };
        format!("{engine}, ad {ad}, superpages {superpages}, {vcpus} vcpu{plural}")
    }

    /// A run that has not ended by now will not.
    pub(super) fn limit(&self) -> Duration {
        limit(self.engine)
    }

    /// What skep is given.
    pub(super) fn arguments(&self, images: &Images) -> Vec<String> {
        let cmdline = format!(
            "console=ttyS0 panic=-1 quiet skep.test=soak skep.files={FILES} skep.passes={PASSES} skep.rest={REST}"
        );
        let options = [
            ("--engine", self.engine.to_owned()),
            ("-c", self.vcpus.to_string()),
            ("-m", "512M".to_owned()),
            ("--resident", format!("{RESIDENT_MIB}M")),
            ("--swap", SWAP.to_owned()),
            ("--harvest-every", "100".to_owned()),
            ("--ad", self.ad.to_owned()),
            ("--superpages", self.superpages.to_owned()),
            ("--kernel", images.kernel.clone()),
            ("--initrd", images.initrd.clone()),
            ("--cmdline", cmdline),
            ("--test-switch", "sweep".to_owned()),
            ("--timeout", timeout(self.engine).to_string()),
            ("--report", REPORT.to_owned()),
        ];
        let mut words = vec!["run".to_owned()];
        words.extend(options.into_iter().flat_map(|(option, value)| [option.to_owned(), value]));
        words.push("--verify".to_owned());
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_of_the_tables_has_its_turn_with_one_vcpu_and_with_four() {
        assert_eq!((all("soft").len(), all("kvm").len()), (8, 4));
        assert!(all("kvm").iter().all(|case| case.ad == "emulated"));
        let names: Vec<_> = all("soft").iter().map(Case::name).collect();
        assert!(names.contains(&"soft, ad hw, superpages off, 4 vcpus".to_owned()), "{names:?}");
    }

    #[test]
    fn the_data_is_more_than_may_be_resident_and_less_than_there_is() {
        assert_eq!(DATA_BYTES >> 20, 300);
        const { assert!(DATA_BYTES > 2 * (RESIDENT_MIB << 20) && DATA_BYTES < 512 << 20) };
    }
}
