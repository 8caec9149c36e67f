//! The result as text.

use std::fmt::Write;

use super::boot::MOST_SECONDS;
use super::result::{InterpReport, Told, is_slow};
use super::rows::{Budget, Unit};

fn unit(unit: Unit) -> &'static str {
    match unit {
        Unit::Mips => "MIPS",
        Unit::Nanoseconds => "ns",
        Unit::Megabytes => "MB/s",
    }
}

/// Three digits; thousands apart.
fn number(value: f64) -> String {
    if value < 9.95 {
        return format!("{value:.2}");
    }
    if value < 99.5 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn budget(told: &Told) -> String {
    let limit = match told.budget {
        None => return String::new(),
        Some(Budget::AtLeast(least)) => format!(">= {}", number(least)),
        Some(Budget::AtMost(most)) => format!("<= {most}"),
        Some(Budget::Within(factor, other)) => format!("{other} / {factor}"),
    };
    match told.verdict {
        None => format!("{limit}: not judged"),
        Some(verdict) if verdict.is_met => format!("{limit}: met"),
        Some(_) => format!("{limit}: MISSED"),
    }
}

/// The whole report.
pub(crate) fn render(report: &InterpReport) -> String {
    let labels = &report.labels;
    let noise = report.noise;
    let state = if noise.is_dirty { "busy: a missed budget is no error" } else { "quiet" };
    let qemu = report.qemu.as_deref().unwrap_or("none");
    let mut text = format!(
        "skep bench interp\n  host       Linux {}, {} cpus, {}\n  skep       {} ({} build)\n  \
         QEMU       {qemu}\n  host was   {state} (foreign work {:.1} % of cpu time, stolen {:.1} %; \
         emulators count as foreign)\n\n",
        labels.kernel,
        labels.cpus,
        labels.processor,
        labels.version,
        labels.build,
        noise.foreign_percent,
        noise.steal_percent,
    );
    let columns = report.columns();
    let about = report.loops.iter().map(|told| told.about.len()).max().unwrap_or(0);
    let mut line = |name: &str, what: &str, unit: &str, cells: Vec<String>, budget: &str| {
        let mut row = format!("{name:4} {what:about$} {unit:>5}");
        for cell in cells {
            // Writing to a String cannot fail.
            let _written = write!(row, " {cell:>9}");
        }
        row = format!("{row}  {budget}");
        text += row.trim_end();
        text.push('\n');
    };
    let heads = columns.iter().map(|column| (*column).to_owned()).collect();
    if !columns.is_empty() {
        line("loop", "", "", heads, "budget");
    }
    for told in &report.loops {
        let cell = |column: &&'static str| {
            let figure = told.figures.iter().find(|figure| figure.column == *column);
            figure.map_or_else(|| "-".to_owned(), |figure| number(figure.value))
        };
        let cells = columns.iter().map(cell).collect();
        line(told.name, told.about, unit(told.unit), cells, &budget(told));
    }
    for boot in &report.boots {
        let mut row = format!(
            "boot to init's line, {:8} {:6.2} s of cpu time, {:6.2} s of wall time",
            boot.who, boot.cpu_seconds, boot.wall_seconds
        );
        if let (Some(count), Some(mips)) = (boot.instructions, boot.mips) {
            let millions = count / 1_000_000;
            row +=
                &format!("; {millions} million instructions to power-off, {} MIPS", number(mips));
        }
        if boot.who == "soft" {
            let verdict = if is_slow(boot) { "MISSED" } else { "met" };
            row += &format!("; <= {MOST_SECONDS} s of cpu time: {verdict}");
        }
        text += &row;
        text.push('\n');
    }
    if !report.absent.is_empty() {
        text.push('\n');
    }
    for absent in &report.absent {
        text += &format!("absent: {absent}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_have_three_digits_and_thousands_stand_apart() {
        let told = [0.256, 9.96, 99.6, 999.4, 1234.5, 116_000.0].map(number);
        assert_eq!(told, ["0.26", "10.0", "100", "999", "1,234", "116,000"]);
    }
}
