//! What the guest believes it runs on: the host's supported features, with our topology.
//!
//! One package, one thread per core, local APIC id = vcpu number. Leaves and bits: Intel SDM volume 2,
//! CPUID; AMD APM volume 3, appendix E; KVM's own leaf: Linux, Documentation/virt/kvm/x86/cpuid.rst.

use actors::VcpuId;
use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use super::vm::Halts;

/// Leaf 1, ECX: the local APIC's timer has a TSC-deadline mode.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX: a hypervisor is present.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: the package has more than one logical processor.
const MANY: u32 = 1 << 28;
/// Leaf 0x8000_0001, ECX: those are cores, not threads.
const CORES: u32 = 1 << 1;
/// Leaf 0x4000_0001, EAX: asynchronous page faults: the event, its delivery to a nested guest, and
/// its interrupt.
const ASYNC_PAGE_FAULTS: u32 = 1 << 4 | 1 << 10 | 1 << 14;
/// Leaf 0x4000_0001, EAX: a waiting vcpu may halt and be unhalted by another.
const UNHALT: u32 = 1 << 7;

/// A processor among others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Which one.
    pub(crate) id: VcpuId,
    /// Of how many; at least 1.
    pub(crate) count: u16,
}

impl Place {
    fn apic(self) -> u32 {
        self.id.0.into()
    }

    fn others(self) -> u32 {
        u32::from(self.count).saturating_sub(1)
    }

    /// How many low bits of an APIC id tell the cores of the package apart.
    fn bits(self) -> u32 {
        u32::BITS - self.others().leading_zeros()
    }

    /// The largest number those bits can hold.
    fn mask(self) -> u32 {
        (1 << self.bits()) - 1
    }
}

/// `supported`, as the vcpu at `place` shall see it.
pub(crate) fn shape(
    supported: &[kvm_cpuid_entry2],
    place: Place,
    halts: Halts,
    tsc_deadline: bool,
) -> Vec<kvm_cpuid_entry2> {
    let highest = |leaf| {
        let entry = supported.iter().find(|entry| entry.function == leaf);
        entry.map_or(0, |entry| entry.eax)
    };
    let is_ours = |leaf: u32| matches!(leaf, 0xb | 0x1f);
    // AMD's newest topology leaf would describe the host's.
    let mut leaves: Vec<_> = supported
        .iter()
        .filter(|entry| !is_ours(entry.function) && entry.function != 0x8000_0026)
        .copied()
        .collect();
    let is_amd = supported.iter().any(is_amd_vendor);
    for entry in &mut leaves {
        adjust(entry, place, halts, tsc_deadline);
        if is_amd {
            adjust_amd(entry, place);
        }
    }
    for leaf in [0xb, 0x1f].into_iter().filter(|leaf| *leaf <= highest(0)) {
        leaves.extend(levels(leaf, place));
    }
    leaves
}

fn adjust(entry: &mut kvm_cpuid_entry2, place: Place, halts: Halts, tsc_deadline: bool) {
    let many = place.count > 1;
    match entry.function {
        0x1 => {
            // Brand and cache-line size stay; then how many, and who.
            let count = u32::from(place.count).min(255);
            entry.ebx = entry.ebx & 0xffff | count << 16 | (place.apic() & 0xff) << 24;
            entry.ecx = put(entry.ecx, TSC_DEADLINE, tsc_deadline) | HYPERVISOR;
            entry.edx = put(entry.edx, MANY, many);
        }
        // A cache: how many share it, and (Intel's leaf only) how many cores there are.
        0x4 | 0x8000_001d if entry.eax & 0x1f != 0 => {
            let is_last_level = entry.eax >> 5 & 7 >= 3;
            let sharers = if is_last_level { place.mask() } else { 0 };
            entry.eax = entry.eax & 0x3fff | (sharers & 0xfff) << 14;
            if entry.function == 0x4 {
                entry.eax |= (place.mask() & 0x3f) << 26;
            }
        }
        0x4000_0001 if halts == Halts::OccupyTheCpu => {
            entry.eax &= !(ASYNC_PAGE_FAULTS | UNHALT);
        }
        _ => {}
    }
}

/// The leaves that Intel reserves.
fn adjust_amd(entry: &mut kvm_cpuid_entry2, place: Place) {
    match entry.function {
        0x8000_0001 => entry.ecx = put(entry.ecx, CORES, place.count > 1),
        0x8000_0008 => entry.ecx = place.others() & 0xff | place.bits() << 12,
        0x8000_001e => {
            entry.eax = place.apic();
            entry.ebx = place.apic() & 0xff;
            entry.ecx = 0;
        }
        _ => {}
    }
}

/// Whether leaf 0 spells AMD, or Hygon, whose processors are built the same way. The letters are in
/// EBX, EDX, ECX.
fn is_amd_vendor(leaf: &kvm_cpuid_entry2) -> bool {
    let letters = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
    leaf.function == 0 && matches!(letters.as_flattened(), b"AuthenticAMD" | b"HygonGenuine")
}

/// The extended topology: threads of a core, cores of the package, the end.
fn levels(leaf: u32, place: Place) -> [kvm_cpuid_entry2; 3] {
    let level = |index, shift, processors, kind: u32| kvm_cpuid_entry2 {
        function: leaf,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: index | kind << 8,
        edx: place.apic(),
        ..kvm_cpuid_entry2::default()
    };
    [level(0, 0, 1, 1), level(1, place.bits(), place.count.into(), 2), level(2, 0, 0, 0)]
}

fn put(word: u32, bit: u32, on: bool) -> u32 {
    if on { word | bit } else { word & !bit }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..kvm_cpuid_entry2::default() }
    }

    fn host() -> Vec<kvm_cpuid_entry2> {
        vec![
            // "AuthenticAMD".
            leaf(0x0, [0x10, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
            leaf(0x1, [0x800f12, 0x0510_0800, 0x1, MANY]),
            // A first-level and a third-level cache, shared by 2 and by 32 of the host's.
            leaf(0x4, [0x21 | 1 << 14 | 15 << 26, 0x1c0_003f, 63, 0]),
            leaf(0x4, [0x63 | 31 << 14 | 15 << 26, 0x3c0_003f, 8191, 0]),
            leaf(0xb, [1, 2, 0x100, 9]),
            leaf(0x4000_0001, [u32::MAX, 0, 0, 0]),
            leaf(0x8000_0001, [0, 0, 1 << 22, 0]),
            leaf(0x8000_0008, [0x3028, 0, 0x701f, 0]),
            leaf(0x8000_001d, [0x163 | 31 << 14, 0, 0, 0]),
            leaf(0x8000_001e, [9, 0x104, 0x300, 0]),
            leaf(0x8000_0026, [1, 2, 3, 4]),
        ]
    }

    fn seen(id: u16, count: u16, halts: Halts) -> Vec<kvm_cpuid_entry2> {
        let place = Place { id: VcpuId(id), count };
        shape(&host(), place, halts, true)
    }

    fn find(seen: &[kvm_cpuid_entry2], function: u32, index: usize) -> kvm_cpuid_entry2 {
        *seen.iter().filter(|entry| entry.function == function).nth(index).unwrap()
    }

    #[test]
    fn every_vcpu_sees_its_own_number_and_how_many_there_are() {
        for (id, count) in [(0, 1), (0, 2), (3, 4), (5, 6), (254, 255)] {
            let seen = seen(id, count, Halts::SleepInTheKernel);
            let first = find(&seen, 0x1, 0);
            assert_eq!(first.ebx >> 24, u32::from(id));
            assert_eq!(first.ebx >> 16 & 0xff, u32::from(count));
            assert_eq!(first.ebx & 0xffff, 0x0800);
            assert_eq!(first.edx & MANY != 0, count > 1);
            assert_ne!(first.ecx & HYPERVISOR, 0);
            for index in 0..3 {
                assert_eq!(find(&seen, 0xb, index).edx, u32::from(id));
            }
            assert_eq!(find(&seen, 0x8000_001e, 0).eax, u32::from(id));
        }
    }

    #[test]
    fn the_bits_of_an_apic_id_have_room_for_all_and_no_more() {
        for (count, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (64, 6), (65, 7)] {
            let seen = seen(0, count, Halts::SleepInTheKernel);
            let cores = find(&seen, 0xb, 1);
            assert_eq!((cores.eax, cores.ebx), (bits, u32::from(count)), "{count} cores");
            assert_eq!(cores.ecx, 0x201);
            let amd = find(&seen, 0x8000_0008, 0).ecx;
            assert_eq!((amd & 0xff, amd >> 12), (u32::from(count) - 1, bits));
        }
    }

    #[test]
    fn what_amd_means_by_a_bit_is_said_to_amds_guests_only() {
        let cores = |vendor, count| {
            let mut leaves = host();
            leaves[0].ecx = vendor;
            let place = Place { id: VcpuId(0), count };
            let seen = shape(&leaves, place, Halts::SleepInTheKernel, true);
            (find(&seen, 0x8000_0001, 0).ecx & CORES, find(&seen, 0x8000_0008, 0).ecx)
        };
        let (amd, other) = (0x444d_4163, 0x6c65_746e);
        assert_eq!(cores(amd, 2), (CORES, 1 << 12 | 1));
        assert_eq!(cores(amd, 1), (0, 0));
        assert_eq!(cores(other, 2), (0, 0x701f));
    }

    #[test]
    fn only_the_last_cache_is_shared() {
        let seen = seen(0, 4, Halts::SleepInTheKernel);
        assert_eq!(find(&seen, 0x4, 0).eax, 0x21 | 3 << 26);
        assert_eq!(find(&seen, 0x4, 1).eax, 0x63 | 3 << 14 | 3 << 26);
        assert_eq!(find(&seen, 0x8000_001d, 0).eax, 0x163 | 3 << 14);
    }

    #[test]
    fn nothing_of_the_hosts_topology_is_left() {
        let seen = seen(1, 2, Halts::SleepInTheKernel);
        assert!(seen.iter().all(|entry| entry.function != 0x8000_0026));
        assert_eq!(seen.iter().filter(|it| it.function == 0xb).count(), 3);
        // The host's highest leaf is 0x10.
        assert!(seen.iter().all(|entry| entry.function != 0x1f));
    }

    #[test]
    fn exact_vcpus_know_nothing_of_asynchronous_page_faults() {
        let hidden = ASYNC_PAGE_FAULTS | UNHALT;
        let asleep = seen(0, 1, Halts::SleepInTheKernel);
        assert_eq!(find(&asleep, 0x4000_0001, 0).eax, u32::MAX);
        let exact = seen(0, 1, Halts::OccupyTheCpu);
        assert_eq!(find(&exact, 0x4000_0001, 0).eax, !hidden);
    }

    #[test]
    fn a_timer_mode_the_kernel_lacks_is_not_promised() {
        let place = Place { id: VcpuId(0), count: 1 };
        let without = shape(&host(), place, Halts::SleepInTheKernel, false);
        assert_eq!(find(&without, 0x1, 0).ecx & TSC_DEADLINE, 0);
    }
}
