//! What is measured, in which unit, and what was promised.

use loader_actor::guests::loops;
use serde::Serialize;

/// How a row is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Unit {
    /// Millions of guest instructions a second.
    #[serde(rename = "MIPS")]
    Mips,
    /// Nanoseconds an iteration.
    #[serde(rename = "ns")]
    Nanoseconds,
    /// Millions of bytes a second.
    #[serde(rename = "MB/s")]
    Megabytes,
}

/// What the software processor must reach, in the row's unit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Budget {
    AtLeast(f64),
    AtMost(f64),
    /// This many times slower than another row, at most.
    Within(f64, &'static str),
}

/// One loop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// Its number, for the payload.
    pub(crate) number: u8,
    pub(crate) unit: Unit,
    half_instructions: u32,
    bytes: u64,
    pub(crate) budget: Option<Budget>,
}

impl Row {
    /// Nanoseconds an iteration, in this row's unit.
    #[expect(clippy::cast_precision_loss, reason = "64 KiB")]
    pub(crate) fn told(&self, nanoseconds: f64) -> f64 {
        match self.unit {
            Unit::Mips => f64::from(self.half_instructions) / 2.0 / nanoseconds * 1e3,
            Unit::Nanoseconds => nanoseconds,
            Unit::Megabytes => self.bytes as f64 / nanoseconds * 1e3,
        }
    }

    /// Which of [`loops::LOOPS`] it is: the others need a system.
    pub(crate) fn blob_index(&self) -> Option<usize> {
        let index = usize::from(self.number);
        (index < loops::LOOPS.len()).then_some(index)
    }
}

/// Loops that need privilege, behind those of the blob, in the payload's order.
const OWN: [(&str, &str, f64); 5] = [
    ("d1", "CPL 3: syscall, sysret, dec, jnz", 90.0),
    ("d2", "CPL 3: int 0x80, iretq, dec, jnz", 0.0),
    ("d3", "CPL 0: page fault, two adds, iretq, dec, jnz", 250.0),
    ("d4", "reload of CR3, 16 pages touched", 0.0),
    ("d5", "out to port 0x80, dec, jnz", 25.0),
];

fn budget(name: &str) -> Option<Budget> {
    Some(match name {
        "a2" => Budget::AtLeast(350.0),
        "a3" => Budget::AtLeast(220.0),
        "b1" => Budget::AtLeast(300.0),
        "b4" => Budget::AtMost(20.0),
        "b5" => Budget::AtMost(130.0),
        "c1" => Budget::AtLeast(2000.0),
        "c2'" => Budget::Within(3.0, "c2"),
        _ => return None,
    })
}

fn unit(name: &str) -> Unit {
    match name {
        _ if name.starts_with('c') => Unit::Megabytes,
        "b2" | "b3" | "b4" | "b5" | "e1" | "e2" => Unit::Nanoseconds,
        _ => Unit::Mips,
    }
}

/// All of them, in the order of the table.
pub(crate) fn all() -> Vec<Row> {
    let mut rows: Vec<Row> = (0u8..)
        .zip(loops::LOOPS)
        .map(|(number, one)| Row {
            name: one.name,
            about: one.about,
            number,
            unit: unit(one.name),
            half_instructions: one.half_instructions,
            bytes: one.bytes,
            budget: budget(one.name),
        })
        .collect();
    let next = u8::try_from(rows.len()).expect("a few loops");
    rows.extend((next..).zip(OWN).map(|(number, (name, about, most))| Row {
        name,
        about,
        number,
        unit: Unit::Nanoseconds,
        half_instructions: 0,
        bytes: 0,
        budget: (most > 0.0).then_some(Budget::AtMost(most)),
    }));
    rows.sort_by_key(|row| row.name);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str) -> Row {
        all().into_iter().find(|row| row.name == name).unwrap()
    }

    #[test]
    fn a_row_is_told_in_its_own_unit() {
        // Two instructions in half a nanosecond.
        assert!((row("a1").told(0.5) - 4000.0).abs() < 1e-9);
        assert!((row("a3").told(31.0) - 500.0).abs() < 1e-9);
        assert!((row("b4").told(17.0) - 17.0).abs() < 1e-9);
        // 65,536 bytes in 65,536 ns.
        assert!((row("c1").told(65_536.0) - 1000.0).abs() < 1e-9);
    }

    #[test]
    fn names_differ_and_only_the_system_rows_lie_outside_the_blob() {
        let rows = all();
        for pair in rows.windows(2) {
            assert!(pair[0].name < pair[1].name);
        }
        for row in &rows {
            assert_eq!(row.blob_index().is_none(), row.name.starts_with('d'), "{}", row.name);
        }
    }
}
