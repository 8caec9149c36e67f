//! Which interrupt line leads to which pin: as every PC since the first I/O APICs.
//!
//! KVM's own default leads line 0, the interval timer, to pin 0 of the I/O APIC. A PC's leads to
//! pin 2, and our ACPI tables (the MADT's interrupt source override) say so.

use actors::platform::TIMER_PIN;
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_irqchip,
};

/// Pins of the kernel's I/O APIC.
pub(super) const IOAPIC_PINS: u32 = 24;
/// Pins of each of the two older controllers.
const PIC_PINS: u32 = 8;

fn lead(line: u32, controller: u32, pin: u32) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi: line,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            irqchip: kvm_irq_routing_irqchip { irqchip: controller, pin },
        },
        ..kvm_irq_routing_entry::default()
    }
}

/// Line and pin of the I/O APIC: each line its own, save the timer's, which takes pin 2 from
/// line 2 (on the older controllers the cascade, which nobody else can use).
fn ioapic_pins() -> impl Iterator<Item = (u32, u32)> {
    let timer_pin = u32::from(TIMER_PIN);
    let pin = move |line| if line == 0 { timer_pin } else { line };
    (0..IOAPIC_PINS).filter(move |line| *line != timer_pin).map(move |line| (line, pin(line)))
}

/// The whole table.
///
/// # Panics
///
/// Never: it has a few dozen entries.
pub(super) fn table() -> KvmIrqRouting {
    let older = (0..2 * PIC_PINS).map(|line| match line.checked_sub(PIC_PINS) {
        None => lead(line, KVM_IRQCHIP_PIC_MASTER, line),
        Some(pin) => lead(line, KVM_IRQCHIP_PIC_SLAVE, pin),
    });
    let newer = ioapic_pins().map(|(line, pin)| lead(line, KVM_IRQCHIP_IOAPIC, pin));
    let entries: Vec<_> = older.chain(newer).collect();
    KvmIrqRouting::from_entries(&entries).expect("fewer entries than KVM has room for")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timer_has_pin_2_and_no_pin_has_two_lines() {
        let pins: Vec<_> = ioapic_pins().collect();
        assert!(pins.contains(&(0, 2)) && pins.contains(&(4, 4)) && pins.contains(&(9, 9)));
        let mut seen: Vec<_> = pins.iter().map(|(_, pin)| *pin).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), pins.len());
        assert_eq!(table().as_slice().len(), 16 + 23);
    }
}
