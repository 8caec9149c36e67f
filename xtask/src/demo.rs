//! `cargo xtask demo`: a stock Linux under skep, in front of you.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::apt;
use crate::arguments::Arguments;
use crate::cache::Cache;
use crate::failure::{Failure, Outcome, about};
use crate::fetch;
use crate::initrd;
use crate::kernels::LAB_LINE;
use crate::lab::image::{GUEST_INITRD, guest_bzimage};
use crate::lab::{Lab, shell_line};
use crate::ours;
use crate::process::{find, say};

/// What `--help` says.
pub(crate) const HELP: &str = "\
Boots a stock multi-vcpu Linux under skep, with its console on your screen, and
ends with skep's summary of what happened.

Usage: cargo xtask demo [OPTIONS]

  --cpus N        vcpus (default 2)
  --memory SIZE   memory, as skep's -m takes it (default 512)
  --shell         stay in a shell inside the guest; leave it with `exit`
  --kernel FILE   boot this kernel instead (a bzImage, or a vmlinux with a PVH note)
  --initrd FILE   with this initrd instead of ours
  --lab           use the lab even where the host's KVM is a hardware one

It builds skep, downloads a stock Debian kernel and a busybox (kept: see
`cargo xtask fetch --help`), and boots them. Where /dev/kvm is a hardware one the
guest runs on it directly. Where it is not, it runs in the lab (`cargo xtask lab
--help`), which is an emulated machine and accordingly slow.

On a distribution other than Debian nothing is downloaded: the host's own kernel,
/boot/vmlinuz-$(uname -r), is booted, with the host's busybox in an initrd.
";

/// What was typed.
#[derive(Debug)]
struct Demo {
    cpus: u32,
    memory: String,
    shell: bool,
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    lab: bool,
}

/// The command.
pub(crate) fn main(arguments: &[OsString]) -> Outcome<u8> {
    let demo = parse(arguments)?;
    if demo.lab {
        return demo.run_in_lab();
    }
    match why_not_here() {
        None => demo.run_here(),
        Some(why) => {
            say(format!("demo: {why}: using the lab, an emulated machine that has one"));
            demo.run_in_lab()
        }
    }
}

fn parse(arguments: &[OsString]) -> Outcome<Demo> {
    let mut demo = Demo {
        cpus: 2,
        memory: "512".to_owned(),
        shell: false,
        kernel: None,
        initrd: None,
        lab: false,
    };
    let mut arguments = Arguments::new("demo", arguments);
    while let Some(option) = arguments.option()? {
        match option.as_str() {
            "--cpus" => demo.cpus = arguments.number(&option)?,
            "--memory" => demo.memory = arguments.value(&option)?,
            "--shell" => demo.shell = true,
            "--kernel" => demo.kernel = Some(readable(arguments.value(&option)?)?),
            "--initrd" => demo.initrd = Some(readable(arguments.value(&option)?)?),
            "--lab" => demo.lab = true,
            _ => return Err(arguments.unknown(&option)),
        }
    }
    Ok(demo)
}

fn readable(file: String) -> Outcome<PathBuf> {
    let file = PathBuf::from(file);
    File::open(&file).map_err(about("read", &file))?;
    Ok(file)
}

/// Why a guest cannot run on this machine's own KVM; nothing when it can.
///
/// The kernel's modules tell the kinds apart, loaded or built in: `kvm_intel` and
/// `kvm_amd` drive the processor's virtualization, anything else emulates it.
fn why_not_here() -> Option<String> {
    let kvm = Path::new("/dev/kvm");
    if !kvm.exists() {
        return Some("this machine has no /dev/kvm".to_owned());
    }
    let is_hardware = ["kvm_intel", "kvm_amd"]
        .iter()
        .any(|module| Path::new("/sys/module").join(module).exists());
    if !is_hardware {
        return Some("this machine's /dev/kvm is not a hardware one".to_owned());
    }
    let opened = File::options().read(true).write(true).open(kvm);
    opened
        .err()
        .map(|error| format!("/dev/kvm cannot be opened ({error}; are you in the group kvm?)"))
}

impl Demo {
    /// The arguments of `skep` that boot this kernel.
    fn arguments(&self, kernel: &str, initrd: &str) -> Vec<String> {
        let ending = if self.shell { "shell" } else { "poweroff" };
        let cmdline = format!("console=ttyS0 panic=-1 skep.test={ending}");
        let options = [
            ("-c", self.cpus.to_string()),
            ("-m", self.memory.clone()),
            ("--kernel", kernel.to_owned()),
            ("--initrd", initrd.to_owned()),
            ("--cmdline", cmdline),
        ];
        let mut arguments: Vec<String> = ["run", "--engine", "kvm"].map(str::to_owned).into();
        for (option, value) in options {
            arguments.extend([option.to_owned(), value]);
        }
        arguments
    }

    fn run_here(&self) -> Outcome<u8> {
        let cache = Cache::open()?;
        let (kernel, busybox) = self.kernel_and_busybox(&cache)?;
        let initrd = match (&self.initrd, busybox) {
            (Some(own), _) => own.clone(),
            (None, Some(busybox)) => write_initrd(&cache, &busybox)?,
            (None, None) => {
                return Err(Failure::new(
                    "demo: an initrd is made of a busybox, and this machine has none: \
                     install busybox, or pass --initrd FILE",
                ));
            }
        };
        say("demo: building skep (a minute or two the first time)");
        let skep = ours::build_skep()?;
        let arguments =
            self.arguments(&kernel.display().to_string(), &initrd.display().to_string());
        say(format!("demo: skep {}", arguments.join(" ")));
        let status = Command::new(&skep)
            .args(&arguments)
            .stdin(Stdio::inherit())
            .status()
            .map_err(about("start", &skep))?;
        Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
    }

    /// What to boot on this very machine.
    fn kernel_and_busybox(&self, cache: &Cache) -> Outcome<(PathBuf, Option<PathBuf>)> {
        if apt::is_debian() && (self.kernel.is_none() || self.initrd.is_none()) {
            let essentials = fetch::essentials(cache)?;
            let kernel = self.kernel.clone();
            let kernel = kernel.unwrap_or_else(|| essentials.kernel.bzimage());
            return Ok((kernel, Some(essentials.busybox)));
        }
        let kernel = match &self.kernel {
            Some(own) => own.clone(),
            None => hosts_own_kernel()?,
        };
        Ok((kernel, find("busybox")))
    }

    fn run_in_lab(&self) -> Outcome<u8> {
        let mut lab = Lab::new(String::new());
        let mut kernel = guest_bzimage(LAB_LINE);
        let mut initrd = GUEST_INITRD.to_owned();
        if let Some(own) = &self.kernel {
            kernel = "/guests/own/kernel".to_owned();
            lab.files.push((own.clone(), kernel.clone()));
        }
        if let Some(own) = &self.initrd {
            initrd = "/guests/own/initrd".to_owned();
            lab.files.push((own.clone(), initrd.clone()));
        }
        let mut command = vec!["skep".to_owned()];
        command.extend(self.arguments(&kernel, &initrd));
        say(format!("demo: {}", command.join(" ")));
        lab.script = shell_line(&command);
        lab.with.stdin = self.shell;
        if self.shell {
            // Somebody is in there; an hour is for forgotten ones.
            lab.limit = std::time::Duration::from_secs(3600);
        }
        say("demo: building skep and booting the lab (minutes the first time, then seconds)");
        lab.run()
    }
}

fn hosts_own_kernel() -> Outcome<PathBuf> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel = PathBuf::from(format!("/boot/vmlinuz-{}", release.trim()));
    match File::open(&kernel) {
        Ok(_) => Ok(kernel),
        Err(error) => Err(Failure::new(format!(
            "demo: no kernel to boot: {} cannot be read ({error}); pass a readable copy of it, \
             or any bzImage, with --kernel FILE",
            kernel.display()
        ))),
    }
}

fn write_initrd(cache: &Cache, busybox: &Path) -> Outcome<PathBuf> {
    let initrd = cache.path("demo-initrd.cpio");
    let part = cache.path(&format!("demo-initrd-{}.part", std::process::id()));
    fs::write(&part, initrd::build(busybox)?).map_err(about("write", &part))?;
    fs::rename(&part, &initrd).map_err(about("write", &initrd))?;
    Ok(initrd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_reaches_skep() {
        let words = ["--cpus", "4", "--memory", "1G", "--shell"].map(OsString::from);
        let arguments = parse(&words).unwrap().arguments("K", "I");
        assert_eq!(
            arguments,
            [
                "run",
                "--engine",
                "kvm",
                "-c",
                "4",
                "-m",
                "1G",
                "--kernel",
                "K",
                "--initrd",
                "I",
                "--cmdline",
                "console=ttyS0 panic=-1 skep.test=shell"
            ]
        );
    }

    #[test]
    fn a_kernel_that_cannot_be_read_is_refused_at_once() {
        let words = ["--kernel", "/no/such/kernel"].map(OsString::from);
        let failure = parse(&words).unwrap_err();
        assert!(failure.message.contains("/no/such/kernel"), "{failure}");
    }
}
