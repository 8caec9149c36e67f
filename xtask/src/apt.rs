//! Debian packages, without touching the system's own package state.
//!
//! Downloads use a private `apt` directory under the cache: its own sources (the
//! mirror this machine is configured for, plus that mirror's backports), lists
//! and archives. Nothing under `/etc/apt` or `/var/lib/apt` is written, nothing
//! is installed, and one need not be root. `dpkg-deb -x` then unpacks what is
//! wanted.
//!
//! The exception is [`ensure_programs`], which installs what only works
//! installed. It does so only as root, and says what before it does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::Cache;
use crate::failure::{Failure, Outcome, about};
use crate::process::{find, is_root, last_lines, output, say, visible};

/// The release whose kernels we boot: the one the project is developed on.
const RELEASE: &str = "bookworm";

/// Where Debian's own keys are, on every Debian.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A private apt state with fresh lists.
#[derive(Debug)]
pub(crate) struct Apt {
    /// Our `apt.conf`, given to every call with `-c`.
    config: PathBuf,
    mirror: String,
}

impl Apt {
    /// Sets the private state up and reads the mirror's lists.
    ///
    /// # Errors
    ///
    /// On anything but Debian, and when the mirror does not answer.
    pub(crate) fn prepare(cache: &Cache) -> Outcome<Self> {
        let mirror = mirror()?;
        let root = cache.path("apt");
        for folder in ["state/lists/partial", "cache/archives/partial"] {
            let folder = root.join(folder);
            fs::create_dir_all(&folder).map_err(about("create", &folder))?;
        }
        let sources = root.join("sources.list");
        write(&sources, &sources_list(&mirror, Path::new(KEYRING).exists()))?;
        // An empty list of installed packages: what is installed here must not
        // decide what is downloaded.
        write(&root.join("status"), "")?;
        let config = root.join("apt.conf");
        write(&config, &configuration(&root))?;
        let apt = Self { config, mirror };
        say(format!("reading the package lists of {}", apt.mirror));
        apt.run("apt-get", &["update", "-qq"], &root)?;
        Ok(apt)
    }

    /// The newest kernel of a line that this mirror has, for example
    /// `6.12.95+deb12-cloud-amd64` for `6.12`.
    ///
    /// # Errors
    ///
    /// When the mirror has none.
    pub(crate) fn newest_cloud_kernel(&self, line: &str) -> Outcome<String> {
        let meta = "linux-image-cloud-amd64";
        let shown = self.run("apt-cache", &["show", meta], Path::new("/"))?;
        named_by_meta(&String::from_utf8_lossy(&shown), line).ok_or_else(|| {
            Failure::new(format!(
                "{} has no {line} cloud kernel in {RELEASE} or {RELEASE}-backports \
                 ({meta} names none)",
                self.mirror
            ))
        })
    }

    /// Downloads one package and unpacks it into `into`.
    ///
    /// # Errors
    ///
    /// A mirror that does not answer or has it not, a full disk.
    pub(crate) fn unpack(&self, package: &str, into: &Path) -> Outcome {
        let landing = into.join(".download");
        fs::create_dir_all(&landing).map_err(about("create", &landing))?;
        say(format!("downloading {package}"));
        self.run("apt-get", &["download", "-qq", package], &landing)?;
        let archive = only_package(&landing)?;
        output(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(into))?;
        fs::remove_dir_all(&landing).map_err(about("remove", &landing))
    }

    fn run(&self, program: &str, arguments: &[&str], folder: &Path) -> Outcome<Vec<u8>> {
        output(
            Command::new(program)
                .arg("-c")
                .arg(&self.config)
                .args(arguments)
                .env("LC_ALL", "C")
                .current_dir(folder),
        )
        .map_err(|failure| {
            Failure::new(format!(
                "{failure}\n(the mirror is {}, as /etc/apt names it)",
                self.mirror
            ))
        })
    }
}

/// Makes sure programs are there, given as `(program, package)`.
///
/// As root it installs the missing ones with `apt-get`, after saying which.
///
/// # Errors
///
/// Not being root: the sentence holds the command to type.
pub(crate) fn ensure_programs(wanted: &[(&str, &str)]) -> Outcome {
    let mut missing: Vec<&str> = wanted
        .iter()
        .filter(|(program, _)| find(program).is_none())
        .map(|&(_, package)| package)
        .collect();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if find("apt-get").is_none() {
        return Err(Failure::new(format!(
            "missing: {names} (Debian's names; this machine has no apt-get, install them its own way)"
        )));
    }
    if !is_root() {
        return Err(Failure::new(format!(
            "missing packages: {names}; install them with `sudo apt-get install {names}`"
        )));
    }
    say(format!("installing missing packages with apt-get: {names}"));
    visible(Command::new("apt-get").args(["update", "-qq"]))?;
    visible(
        Command::new("apt-get")
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(&missing)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )?;
    match wanted.iter().find(|(program, _)| find(program).is_none()) {
        None => Ok(()),
        Some((program, package)) => {
            Err(Failure::new(format!("{package} was installed, and still there is no {program}")))
        }
    }
}

fn write(path: &Path, text: &str) -> Outcome {
    fs::write(path, text).map_err(about("write", path))
}

/// Whether downloads are possible: this is a Debian with its usual tools.
pub(crate) fn is_debian() -> bool {
    os_release_field(&os_release(), "ID").as_deref() == Some("debian")
        && find("apt-get").is_some()
        && find("dpkg-deb").is_some()
}

fn os_release() -> String {
    fs::read_to_string("/etc/os-release").unwrap_or_default()
}

/// The address of the Debian mirror this machine is configured for.
fn mirror() -> Outcome<String> {
    let release = os_release();
    let field = |name: &str| os_release_field(&release, name).unwrap_or_default();
    if !is_debian() {
        return Err(Failure::new(format!(
            "kernels are downloaded with Debian's apt, and this is {}; \
             pass a kernel of your own with --kernel FILE where a command takes one",
            match field("PRETTY_NAME").as_str() {
                "" => "not Debian",
                name => name,
            }
        )));
    }
    let codename = field("VERSION_CODENAME");
    let sources = system_sources();
    sources.iter().find_map(|(is_deb822, text)| mirror_in(text, *is_deb822, &codename)).ok_or_else(
        || {
            Failure::new(format!(
                "/etc/apt names no mirror for Debian {codename}; \
                 add one there, or pass a kernel of your own with --kernel FILE"
            ))
        },
    )
}

/// The texts of all source files, each with whether it is in the newer format.
fn system_sources() -> Vec<(bool, String)> {
    let folder = Path::new("/etc/apt/sources.list.d");
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    files.extend(fs::read_dir(folder).into_iter().flatten().flatten().map(|item| item.path()));
    files.sort();
    files
        .iter()
        .filter_map(|file| {
            let is_deb822 = match file.extension()?.to_str()? {
                "sources" => true,
                "list" => false,
                _ => return None,
            };
            Some((is_deb822, fs::read_to_string(file).ok()?))
        })
        .collect()
}

/// The value of a field of `/etc/os-release`.
fn os_release_field(text: &str, name: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value.trim_matches('"').to_owned())
}

/// The first mirror of a sources file that serves `main` of the suite `codename`.
fn mirror_in(text: &str, is_deb822: bool, codename: &str) -> Option<String> {
    let serves = |suites: &[&str], components: &[&str]| {
        let known = [codename, "stable", "oldstable"];
        suites.iter().any(|suite| known.contains(suite)) && components.contains(&"main")
    };
    if !is_deb822 {
        return text.lines().find_map(|line| {
            // deb [options] URI suite component...
            let rest = line.trim().strip_prefix("deb")?.strip_prefix([' ', '\t'])?;
            let rest = match rest.trim_start().strip_prefix('[') {
                Some(options) => options.split_once(']')?.1,
                None => rest,
            };
            let words: Vec<&str> = rest.split_whitespace().collect();
            let (uri, suite) = (words.first()?, words.get(1)?);
            serves(&[suite], &words[2..]).then(|| (*uri).to_owned())
        });
    }
    text.split("\n\n").find_map(|stanza| {
        let field = |name: &str| -> Vec<&str> {
            stanza
                .lines()
                .filter(|line| !line.starts_with('#'))
                .filter_map(|line| line.split_once(':'))
                .find(|(key, _)| key.eq_ignore_ascii_case(name))
                .map(|(_, value)| value.split_whitespace().collect())
                .unwrap_or_default()
        };
        let wanted = field("Types").contains(&"deb")
            && !field("Enabled").contains(&"no")
            && serves(&field("Suites"), &field("Components"));
        let uris = field("URIs");
        wanted.then(|| uris.first().map(|uri| (*uri).to_owned()))?
    })
}

fn sources_list(mirror: &str, has_keyring: bool) -> String {
    let options = if has_keyring {
        format!("[arch=amd64 signed-by={KEYRING}]")
    } else {
        "[arch=amd64]".to_owned()
    };
    format!(
        "deb {options} {mirror} {RELEASE} main\n\
         deb {options} {mirror} {RELEASE}-backports main\n"
    )
}

/// Settings that make apt use `root` for everything it writes.
///
/// The system's own configuration is read first, for its proxies. Its hooks are
/// dropped, because they tidy the system's caches, which are not ours; so are
/// its pins, and descriptions nobody reads here.
fn configuration(root: &Path) -> String {
    let root = root.display();
    format!(
        "Dir::State \"{root}/state\";\n\
         Dir::State::status \"{root}/status\";\n\
         Dir::Cache \"{root}/cache\";\n\
         Dir::Etc::sourcelist \"{root}/sources.list\";\n\
         Dir::Etc::sourceparts \"/dev/null\";\n\
         Dir::Etc::preferences \"/dev/null\";\n\
         Dir::Etc::preferencesparts \"/dev/null\";\n\
         APT::Architecture \"amd64\";\n\
         APT::Architectures {{ \"amd64\"; }};\n\
         APT::Sandbox::User \"\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::Retries \"3\";\n\
         #clear Acquire::IndexTargets::deb::DEP-11;\n\
         #clear Acquire::IndexTargets::deb::DEP-11-icons-small;\n\
         #clear Acquire::IndexTargets::deb::DEP-11-icons;\n\
         #clear Acquire::IndexTargets::deb::DEP-11-icons-hidpi;\n\
         #clear Acquire::IndexTargets::deb::DEP-11-icons-large;\n\
         #clear Acquire::IndexTargets::deb::DEP-11-icons-large-hidpi;\n\
         #clear APT::Update::Pre-Invoke;\n\
         #clear APT::Update::Post-Invoke;\n\
         #clear APT::Update::Post-Invoke-Success;\n\
         #clear DPkg::Post-Invoke;\n"
    )
}

/// The kernel that the meta package depends on, of the line asked for.
///
/// `shown` is what `apt-cache show` printed: one stanza per version it knows.
fn named_by_meta(shown: &str, line: &str) -> Option<String> {
    let start = format!("linux-image-{line}.");
    shown
        .lines()
        .filter_map(|text| text.strip_prefix("Depends: "))
        .flat_map(|depends| depends.split(','))
        .filter_map(|depend| depend.split_whitespace().next())
        .find(|package| package.starts_with(&start))
        .and_then(|package| package.strip_prefix("linux-image-"))
        .map(str::to_owned)
}

fn only_package(folder: &Path) -> Outcome<PathBuf> {
    let found: Vec<PathBuf> = fs::read_dir(folder)
        .map_err(about("list", folder))?
        .flatten()
        .map(|item| item.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect();
    match found.as_slice() {
        [one] => Ok(one.clone()),
        others => Err(Failure::new(format!(
            "apt-get download left {} packages where one was expected: {}",
            others.len(),
            last_lines(&format!("{others:?}"), 1)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_found_in_the_new_format() {
        let text = "Types: deb\n# a comment: with a colon\nURIs: http://deb.example.org/debian\n\
                    Suites: bookworm bookworm-updates\nComponents: main\n\n\
                    Types: deb\nURIs: http://deb.example.org/security\n\
                    Suites: bookworm-security\nComponents: main\n";
        assert_eq!(
            mirror_in(text, true, "bookworm").as_deref(),
            Some("http://deb.example.org/debian")
        );
        assert_eq!(mirror_in(text, true, "trixie"), None);
    }

    #[test]
    fn the_mirror_is_found_in_the_one_line_format_with_and_without_options() {
        let plain = "# deb http://no.example bookworm main\ndeb http://a.example/debian bookworm main contrib\n";
        let options = "deb [arch=amd64 signed-by=/k.gpg] https://b.example/debian bookworm main\n";
        assert_eq!(mirror_in(plain, false, "bookworm").as_deref(), Some("http://a.example/debian"));
        assert_eq!(
            mirror_in(options, false, "bookworm").as_deref(),
            Some("https://b.example/debian")
        );
    }

    #[test]
    fn somebody_elses_archive_is_not_the_mirror() {
        let foreign = "deb https://packages.example.com/apt cloud-sdk-bookworm main\n\
                       deb-src http://a.example/debian bookworm main\n";
        assert_eq!(mirror_in(foreign, false, "bookworm"), None);
        let disabled =
            "Types: deb\nEnabled: no\nURIs: http://a.example\nSuites: bookworm\nComponents: main\n";
        assert_eq!(mirror_in(disabled, true, "bookworm"), None);
    }

    #[test]
    fn the_meta_package_names_the_kernel_of_each_line() {
        let shown = "Package: linux-image-cloud-amd64\n\
                     Depends: linux-image-6.12.95+deb12-cloud-amd64 (= 6.12.95-1~bpo12+1)\n\n\
                     Package: linux-image-cloud-amd64\n\
                     Depends: linux-image-6.1.0-50-cloud-amd64 (= 6.1.176-1)\n";
        assert_eq!(named_by_meta(shown, "6.1").as_deref(), Some("6.1.0-50-cloud-amd64"));
        assert_eq!(named_by_meta(shown, "6.12").as_deref(), Some("6.12.95+deb12-cloud-amd64"));
        assert_eq!(named_by_meta(shown, "6.18"), None);
    }

    #[test]
    fn fields_of_os_release_are_read_with_and_without_quotes() {
        let text = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\n";
        assert_eq!(os_release_field(text, "ID").as_deref(), Some("debian"));
        assert_eq!(
            os_release_field(text, "PRETTY_NAME").as_deref(),
            Some("Debian GNU/Linux 12 (bookworm)")
        );
        assert_eq!(os_release_field(text, "VERSION_CODENAME"), None);
    }
}
