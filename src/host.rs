//! `skep host`: what this host offers, what it lacks, and the one command that mends it.

use machine::host::{Finding, survey};
use skep::ExitStatus;

use crate::Failure;
use crate::cli::HostArgs;

pub(crate) fn run(args: &HostArgs) -> Result<ExitStatus, Failure> {
    let findings = survey();
    if args.json {
        let text = serde_json::to_string_pretty(&findings);
        let text = text.map_err(|why| Failure::new(ExitStatus::Error, why))?;
        print(&format!("{text}\n"))?;
    } else {
        print(&table(&findings))?;
    }
    let works = findings.iter().all(|finding| finding.works || !finding.needed);
    Ok(if works { ExitStatus::Success } else { ExitStatus::HostLacks })
}

fn print(text: &str) -> Result<(), Failure> {
    use std::io::Write;
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|why| Failure::new(ExitStatus::ConsoleClosed, format!("stdout: {why}")))
}

fn table(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.what.len()).max().unwrap_or(0);
    let mut text = String::new();
    for finding in findings {
        let mark = match (finding.works, finding.needed) {
            (true, _) => "yes",
            (false, true) => "NO ",
            (false, false) => "no ",
        };
        text += &format!("{:width$}  {mark}  {}\n", finding.what, finding.detail);
        if let Some(remedy) = &finding.remedy {
            text += &format!("{:width$}       to mend it: {remedy}\n", "");
        }
    }
    text
}
