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
  --engine NAME   kvm, soft or auto (default auto: KVM where the processor assists
                  it, else skep's own processor)
  --lab           run it in the lab, on an emulated machine's KVM

It builds skep, downloads a stock Debian kernel and a busybox (kept: see
`cargo xtask fetch --help`), and boots them on this machine, as whoever you are.
Where there is no /dev/kvm, or you may not open it, or it is no hardware one, the
software engine runs the guest: it needs no privileges, and about half a minute.

With --lab the guest runs in the lab (`cargo xtask lab --help`), which has a
genuine /dev/kvm wherever you are, and is an emulated machine and accordingly slow.

On a distribution other than Debian nothing is downloaded: the host's own kernel,
/boot/vmlinuz-$(uname -r), is booted, with the host's busybox in an initrd.
";

/// A demo that has not ended after so many seconds will not: the software engine
/// needs 20 s for it on an idle machine. A shell may stay as long as it likes.
const TIMEOUT_SECONDS: &str = "600";

/// What was typed.
#[derive(Debug)]
struct Demo {
    cpus: u32,
    memory: String,
    shell: bool,
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    engine: String,
    lab: bool,
}

/// The command.
pub(crate) fn main(arguments: &[OsString]) -> Outcome<u8> {
    let demo = parse(arguments)?;
    if demo.lab { demo.run_in_lab() } else { demo.run_here() }
}

fn parse(arguments: &[OsString]) -> Outcome<Demo> {
    let mut demo = Demo {
        cpus: 2,
        memory: "512".to_owned(),
        shell: false,
        kernel: None,
        initrd: None,
        engine: "auto".to_owned(),
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
            "--engine" => demo.engine = engine(arguments.value(&option)?)?,
            "--lab" => demo.lab = true,
            _ => return Err(arguments.unknown(&option)),
        }
    }
    if demo.lab && demo.engine == "auto" {
        demo.engine = "kvm".to_owned();
    }
    Ok(demo)
}

fn engine(name: String) -> Outcome<String> {
    if ["auto", "kvm", "soft"].contains(&name.as_str()) {
        return Ok(name);
    }
    Err(Failure::usage(format!("demo: there is no engine {name:?}: there are auto, kvm and soft")))
}

fn readable(file: String) -> Outcome<PathBuf> {
    let file = PathBuf::from(file);
    File::open(&file).map_err(about("read", &file))?;
    Ok(file)
}

/// Why the software engine runs the guest and not this machine's own KVM; nothing when
/// that does. skep decides for itself, and says so in its summary; this is for those
/// who wait for it.
///
/// The kernel's modules tell the kinds apart, loaded or built in: `kvm_intel` and
/// `kvm_amd` drive the processor's virtualization, anything else emulates it.
fn why_not_kvm() -> Option<String> {
    let kvm = Path::new("/dev/kvm");
    if !kvm.exists() {
        return Some("this machine has no /dev/kvm".to_owned());
    }
    if let Err(error) = File::options().read(true).write(true).open(kvm) {
        return Some(format!("/dev/kvm cannot be opened ({error}; are you in the group kvm?)"));
    }
    let is_hardware = ["kvm_intel", "kvm_amd"]
        .iter()
        .any(|module| Path::new("/sys/module").join(module).exists());
    (!is_hardware).then(|| "this machine's /dev/kvm is not a hardware one".to_owned())
}

impl Demo {
    /// Which engine will run the guest on this machine, and why, for those who wait.
    fn announcement(&self) -> String {
        let (which, why) = match (self.engine.as_str(), why_not_kvm()) {
            ("auto", None) => ("KVM", "this machine's is a hardware one".to_owned()),
            ("auto", Some(why)) => ("the software engine", why),
            ("kvm", _) => ("KVM", "--engine asks for it".to_owned()),
            _ => ("the software engine", "--engine asks for it".to_owned()),
        };
        format!("demo: {which} runs the guest, because {why}")
    }

    /// The arguments of `skep` that boot this kernel.
    fn arguments(&self, kernel: &str, initrd: &str) -> Vec<String> {
        let ending = if self.shell { "shell" } else { "poweroff" };
        let cmdline = format!("console=ttyS0 panic=-1 skep.test={ending}");
        let mut options = vec![
            ("-c", self.cpus.to_string()),
            ("-m", self.memory.clone()),
            ("--kernel", kernel.to_owned()),
            ("--initrd", initrd.to_owned()),
            ("--cmdline", cmdline),
        ];
        if !self.shell {
            options.push(("--timeout", TIMEOUT_SECONDS.to_owned()));
        }
        let mut arguments = ["run", "--engine", &self.engine].map(str::to_owned).to_vec();
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
            (None, Some(busybox)) => initrd::write(&cache, &busybox)?,
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
        say(self.announcement());
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
                "auto",
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
    fn the_lab_has_kvm_and_a_demo_that_nobody_leaves_ends_by_itself() {
        let demo = parse(&["--lab".into()]).unwrap();
        let arguments = demo.arguments("K", "I").join(" ");
        assert!(arguments.starts_with("run --engine kvm "), "{arguments}");
        assert!(arguments.ends_with(" --timeout 600"), "{arguments}");
    }

    #[test]
    fn an_engine_that_does_not_exist_is_refused_and_one_that_was_asked_for_is_announced() {
        let typed = |name: &str| parse(&["--engine".into(), name.into()]);
        assert_eq!(typed("warp").unwrap_err().status, 2);
        let announcement = typed("soft").unwrap().announcement();
        assert!(announcement.contains("the software engine"), "{announcement}");
        assert!(announcement.ends_with("--engine asks for it"), "{announcement}");
    }

    #[test]
    fn a_kernel_that_cannot_be_read_is_refused_at_once() {
        let words = ["--kernel", "/no/such/kernel"].map(OsString::from);
        let failure = parse(&words).unwrap_err();
        assert!(failure.message.contains("/no/such/kernel"), "{failure}");
    }
}
