//! A stock Linux up to a line that its init prints: under the software engine, and under QEMU's translator.
//!
//! Both are processes of their own. Their cpu time is read when the line arrives and when they have closed their
//! output; instructions are counted by the software engine alone, from the first to power-off.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::pages::cpu_time_of;
use super::qemu;
use crate::cli::InterpArgs;
use crate::error::{BenchError, host};

/// The software engine's cpu time until the line: more than this is too slow.
pub(crate) const MOST_SECONDS: f64 = 12.0;
/// What such a guest gets.
const MEMORY_MIB: &str = "512";
const COMMAND_LINE: &str = "console=ttyS0 panic=-1";

/// One boot.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Boot {
    pub(crate) who: &'static str,
    /// Until the line.
    pub(crate) cpu_seconds: f64,
    pub(crate) wall_seconds: f64,
    /// Until the guest was off.
    pub(crate) whole_cpu_seconds: f64,
    /// Of the guest's, until it was off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) instructions: Option<u64>,
    /// Millions a second of cpu time, over the whole run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mips: Option<f64>,
}

/// Boots once on each side, if that was asked for.
pub(crate) fn run(args: &InterpArgs, absent: &mut Vec<String>) -> Result<Vec<Boot>, BenchError> {
    let (Some(kernel), Some(initrd)) = (&args.boot, &args.initrd) else { return Ok(Vec::new()) };
    let report = tempfile::NamedTempFile::new().map_err(host("make a file for skep's report"))?;
    let skep = std::env::current_exe().map_err(host("find this program"))?;
    let mut soft = Command::new(skep);
    soft.args(["run", "--engine", "soft", "-c", "1", "-m", MEMORY_MIB, "--cmdline", COMMAND_LINE]);
    soft.arg("--kernel").arg(kernel).arg("--initrd").arg(initrd).arg("--report").arg(report.path());
    let mut boots = vec![boot("soft", soft, &args.line)?];
    let text = std::fs::read_to_string(report.path()).map_err(host("read skep's report"))?;
    let value: serde_json::Value =
        serde_json::from_str(&text).map_err(host("understand skep's report"))?;
    let counted = instructions(&value);
    boots[0].instructions = counted;
    boots[0].mips = counted.map(|count| mips(count, boots[0].whole_cpu_seconds));
    if qemu::version().is_some() {
        let mut other = Command::new(qemu::PROGRAM);
        other.args(["-accel", "tcg", "-cpu", "qemu64", "-machine", "pc", "-smp", "1", "-m"]);
        other.args([MEMORY_MIB, "-nodefaults", "-display", "none", "-serial", "stdio"]);
        other.args(["-no-reboot", "-append", COMMAND_LINE]);
        other.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd);
        boots.push(boot("QEMU TCG", other, &args.line)?);
    } else {
        absent.push(format!("boot under QEMU TCG: {} is not installed", qemu::PROGRAM));
    }
    Ok(boots)
}

/// What all vcpus did together, as skep's report says.
fn instructions(report: &serde_json::Value) -> Option<u64> {
    let vcpus = report.get("vcpu")?.as_array()?;
    let count = |vcpu: &serde_json::Value| vcpu.get("instructions")?.as_u64();
    vcpus.iter().map(count).sum()
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52 instructions")]
fn mips(instructions: u64, seconds: f64) -> f64 {
    instructions as f64 / seconds / 1e6
}

/// Starts a guest and reads its console until that is closed.
fn boot(who: &'static str, mut command: Command, line: &str) -> Result<Boot, BenchError> {
    let began = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(host(format!("start a guest under {who}")))?;
    let process = child.id();
    let mut console = BufReader::new(child.stdout.take().expect("it was asked for"));
    let mut seen = None;
    let mut text = Vec::new();
    let clock = || cpu_time_of(process).map_err(host("read a guest's cpu time"));
    let read = loop {
        text.clear();
        match console.read_until(b'\n', &mut text) {
            Ok(0) => break clock(),
            Ok(_) if seen.is_none() && String::from_utf8_lossy(&text).contains(line) => {
                seen = Some((clock(), began.elapsed()));
            }
            Ok(_) => {}
            Err(why) => break Err(host("read a guest's console")(why)),
        }
    };
    drop(child.wait());
    let whole: Duration = read?;
    let Some((cpu, wall)) = seen else {
        return Err(BenchError::Ended(format!("the guest under {who} never said \"{line}\"")));
    };
    Ok(Boot {
        who,
        cpu_seconds: cpu?.as_secs_f64(),
        wall_seconds: wall.as_secs_f64(),
        whole_cpu_seconds: whole.as_secs_f64(),
        instructions: None,
        mips: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_found_and_the_clock_runs_on_to_the_end() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo first; echo the second line; echo third"]);
        let boot = boot("sh", command, "second").unwrap();
        assert!(boot.cpu_seconds <= boot.whole_cpu_seconds);
        let mut command = Command::new("sh");
        command.args(["-c", "echo first"]);
        let refused = super::boot("sh", command, "second").unwrap_err().to_string();
        assert!(refused.contains("second"), "{refused}");
    }

    #[test]
    fn instructions_are_summed_over_vcpus_and_missing_where_one_does_not_count() {
        let report = |one: &str| {
            let text = format!(r#"{{"vcpu": [{{"instructions": 5}}, {one}]}}"#);
            instructions(&serde_json::from_str(&text).unwrap())
        };
        assert_eq!(report(r#"{"instructions": 7}"#), Some(12));
        assert_eq!(report(r#"{"instructions": null}"#), None);
        assert!((mips(600, 2e-6) - 300.0).abs() < 1e-9);
    }
}
