//! The rows of a soak, for people and for programs.

use std::fmt::Write as _;

use super::judge::Row;

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// For people.
pub(super) fn text(rows: &[Row]) -> String {
    let wide = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    let mut text = format!(
        "{:wide$}  secs  passes     out      in (at least)  disk in  harvests  2M up  2M down  a/d faults  peak MiB  guest MiB  own MiB",
        "case"
    );
    for row in rows {
        let _infallible = write!(
            text,
            "\n{:wide$}  {:4.0}  {:6}  {:6}  {:6} ({:8})  {:7}  {:8}  {:5}  {:7}  {:10}  {:8.1}  {:9.1}  {:7.1}",
            row.name,
            row.seconds,
            row.passes,
            row.pages_out,
            row.pages_in,
            row.wanted_in,
            row.disk_in,
            row.harvests,
            row.promotions,
            row.demotions,
            row.bit_faults,
            mib(row.peak_bytes),
            mib(row.sampled.guest_bytes),
            mib(row.sampled.own_bytes),
        );
        if let Some(wrong) = &row.wrong {
            let _infallible = write!(text, "\n{:wide$}  NOT CLEAN: {wrong}", "");
        }
    }
    text
}

/// For programs: an array of objects.
pub(super) fn json(rows: &[Row]) -> String {
    let row = |row: &Row| {
        let numbers = [
            ("passes", row.passes),
            ("pages_out", row.pages_out),
            ("pages_in", row.pages_in),
            ("pages_in_at_least", row.wanted_in),
            ("sweeps", row.sweeps),
            ("disk_pages_in", row.disk_in),
            ("compressed_pages_in", row.compressed_in),
            ("harvests", row.harvests),
            ("promotions", row.promotions),
            ("demotions", row.demotions),
            ("bit_faults", row.bit_faults),
            ("peak_bytes", row.peak_bytes),
            ("guest_bytes", row.sampled.guest_bytes),
            ("own_bytes", row.sampled.own_bytes),
        ];
        let numbers: Vec<_> =
            numbers.iter().map(|(name, number)| format!("\"{name}\": {number}")).collect();
        let wrong = row.wrong.as_deref().map_or("null".to_owned(), quoted);
        let (name, seconds) = (quoted(&row.name), row.seconds);
        format!(
            "  {{ \"case\": {name}, \"seconds\": {seconds:.1}, \"wrong\": {wrong}, {} }}",
            numbers.join(", ")
        )
    };
    let rows: Vec<_> = rows.iter().map(row).collect();
    format!("[\n{}\n]", rows.join(",\n"))
}

fn quoted(text: &str) -> String {
    let escape = |c: char| match c {
        '"' | '\\' => format!("\\{c}"),
        c if c.is_control() => format!("\\u{:04x}", u32::from(c)),
        c => c.to_string(),
    };
    format!("\"{}\"", text.chars().map(escape).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_is_not_clean_says_why_in_both_forms() {
        let wrong = Some("skep said \"no\"".to_owned());
        let row = Row { name: "soft".to_owned(), wrong, pages_in: 7, ..Row::default() };
        let rows = [row, Row::default()];
        assert!(text(&rows).contains("NOT CLEAN: skep said \"no\""));
        let json = json(&rows);
        assert!(json.contains(r#""wrong": "skep said \"no\"""#), "{json}");
        assert!(json.contains("\"pages_in\": 7") && json.contains("\"wrong\": null"), "{json}");
    }
}
