//! What is published: a tarball of static programs, a Debian package, a list of all parts (SBOM), and
//! their checksums. All of it is made from the commit that is checked out, and two builds of a commit on machines
//! with the same toolchain and C library are equal, byte by byte.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use clap::Args;

use crate::setup::{self, DPKG_DEB};
use crate::{man, run, target};

/// What users start. The others are found by these in `libexec/holdfast`.
const PROGRAMS: [&str; 5] = [
    "holdfast",
    "holdfast-conmon",
    "holdfast-containerd",
    "containerd-shim-holdfast-v2",
    "holdfast-oci",
];
const HELPERS: [&str; 2] = ["holdfast-shim", "holdfast-init"];
/// The packages that have them.
pub(crate) const PACKAGES: [&str; 7] = [
    "holdfast",
    "holdfast-conmon",
    "holdfast-containerd",
    "holdfast-front",
    "holdfast-oci",
    "holdfast-shim",
    "holdfast-init",
];
/// The units of systemd.
const UNITS: [&str; 4] = [
    "holdfast.service",
    "holdfast.socket",
    "holdfast-conmon-keeper.service",
    "holdfast-conmon-keeper.socket",
];
/// Writes the SBOMs, in CycloneDX's form.
const CYCLONEDX: (&str, &str) = ("cargo-cyclonedx", "0.5.9");

/// All that is installed.
pub(crate) fn programs() -> impl Iterator<Item = &'static str> {
    PROGRAMS.into_iter().chain(HELPERS)
}

/// What to make.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Make all of it a second time elsewhere, and compare
    #[arg(long)]
    check: bool,
    /// Where it goes [default: target/dist]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

pub(crate) fn publish(options: &Options) -> anyhow::Result<()> {
    setup::ensure(&[DPKG_DEB])?;
    let output = options.output.clone().unwrap_or_else(|| target().join("dist"));
    let first = make(&target().join("dist-build"), &output)?;
    if options.check {
        let scratch = tempfile::tempdir()?;
        let second = make(&scratch.path().join("build"), &scratch.path().join("output"))?;
        ensure!(first == second, "the second build differs:\n{first}\nand\n{second}");
        println!("a second build elsewhere is the same");
    }
    print!("{first}");
    println!("{}", output.display());
    Ok(())
}

/// Makes everything below `output`, and returns the checksums.
fn make(build: &Path, output: &Path) -> anyhow::Result<String> {
    let commit = crate::commit()?;
    if commit.ends_with("-dirty") {
        println!("changes that are not committed are left out");
    }
    let source = build.join("source");
    let _ = fs::remove_dir_all(&source);
    let _ = fs::remove_dir_all(output);
    fs::create_dir_all(&source)?;
    fs::create_dir_all(output)?;
    let archive = build.join("source.tar");
    run(crate::git().args(["archive", "--format=tar", "--output"]).arg(&archive).arg("HEAD"))?;
    run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&source))?;
    Release { source, build, output, epoch: epoch()? }.make()
}

/// Makes the Debian package of programs that were built from this tree, without SBOMs. Returns its path.
pub(crate) fn package_of(programs: &Path, build: &Path) -> anyhow::Result<PathBuf> {
    let output = build.join("output");
    fs::create_dir_all(&output)?;
    let source = crate::workspace();
    Release { source, build, output: &output, epoch: epoch()? }.debian(programs, &[])
}

/// The time of the commit: seconds since 1970.
fn epoch() -> anyhow::Result<String> {
    let time = setup::output(crate::git().args(["show", "--no-patch", "--format=%ct", "HEAD"]))?;
    Ok(time.trim().to_owned())
}

/// What these programs say.
fn version(programs: &Path) -> anyhow::Result<String> {
    let said = setup::output(Command::new(programs.join("holdfast")).arg("--version"))?;
    Ok(said.trim().rsplit(' ').next().unwrap_or_default().to_owned())
}

struct Release<'a> {
    source: PathBuf,
    build: &'a Path,
    output: &'a Path,
    /// All files have this time, in seconds since 1970.
    epoch: String,
}

impl Release<'_> {
    fn make(&self) -> anyhow::Result<String> {
        let programs = self.programs()?;
        let sboms = self.sboms()?;
        let name = format!("holdfast-{}-{}-linux", version(&programs)?, std::env::consts::ARCH);
        let tree = self.build.join(&name);
        self.lay_out(&programs, &tree, "share/holdfast/config.toml")?;
        copy_all(&sboms, &tree.join("share/doc/holdfast/sbom"))?;
        for unit in UNITS {
            let to = tree.join("share/holdfast").join(unit);
            self.copy(&format!("dist/{unit}"), &to, 0o644)?;
        }
        self.copy("README.md", &tree.join("README.md"), 0o644)?;
        make_readable(&tree)?;
        let tarball = self.output.join(format!("{name}.tar.gz"));
        run(self
            .command("tar")
            .arg("-C")
            .arg(self.build)
            .args(["--sort=name", "--format=gnu"])
            .args([
                "--owner=0",
                "--group=0",
                "--numeric-owner",
                &format!("--mtime=@{}", self.epoch),
                "--use-compress-program=gzip -9 -n",
                "-cf",
            ])
            .arg(&tarball)
            .arg(&name))?;

        self.debian(&programs, &sboms)?;
        let mut names: Vec<_> = fs::read_dir(self.output)?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<Result<_, std::io::Error>>()?;
        names.sort();
        let sums = setup::output(
            Command::new("sha256sum").current_dir(self.output).arg("--").args(names),
        )?;
        fs::write(self.output.join("SHA256SUMS"), &sums)?;
        Ok(sums)
    }

    /// A command that knows the time by which everything is dated.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("SOURCE_DATE_EPOCH", &self.epoch).env("LC_ALL", "C").env("TZ", "UTC");
        command
    }

    fn cargo(&self) -> Command {
        let mut command = self.command(&std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
        command.current_dir(&self.source);
        command
    }

    /// Builds the programs. No path of this machine gets into them.
    fn programs(&self) -> anyhow::Result<PathBuf> {
        println!("building (release, static)");
        let target = self.build.join("target");
        let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
        let home = home
            .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")))
            .context("neither CARGO_HOME nor HOME is set")?;
        let flags = format!(
            "--remap-path-prefix={}=/cargo\x1f--remap-path-prefix={}=/holdfast",
            home.display(),
            self.source.display()
        );
        let mut build = self.cargo();
        build.args(["build", "--release", "--locked", "--quiet", "--bins"]);
        build.args(PACKAGES.iter().flat_map(|package| ["--package", package]));
        build.env("CARGO_TARGET_DIR", &target).env("CARGO_ENCODED_RUSTFLAGS", flags);
        run(&mut build)?;
        let built = target.join("release");
        for name in programs() {
            let kind = setup::output(Command::new("readelf").arg("-l").arg(built.join(name)))?;
            ensure!(
                !kind.contains("INTERP"),
                "{name} is not static: install the static C library (apt-get install libc6-dev)"
            );
        }
        Ok(built)
    }

    /// Programs, manual pages, completions and the configuration below `/usr` or `/usr/local`.
    fn lay_out(&self, programs: &Path, tree: &Path, config: &str) -> anyhow::Result<()> {
        let _ = fs::remove_dir_all(tree);
        for (names, place) in [(&PROGRAMS[..], "bin"), (&HELPERS, "libexec/holdfast")] {
            for name in names {
                let to = tree.join(place).join(name);
                install(&programs.join(name), &to, 0o755)?;
                run(Command::new("strip").arg("--strip-debug").arg(to))?;
            }
        }
        man::write_by(&programs.join("holdfast"), &tree.join("share"))?;
        self.copy("LICENSE", &tree.join("share/doc/holdfast/copyright"), 0o644)?;
        self.copy("CHANGELOG.md", &tree.join("share/doc/holdfast/CHANGELOG.md"), 0o644)?;
        for entry in fs::read_dir(self.source.join("docs"))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "md") {
                let name = path.file_name().unwrap_or_default();
                install(&path, &tree.join("share/doc/holdfast").join(name), 0o644)?;
            }
        }
        self.copy("dist/config.toml", &tree.join(config), 0o644)
    }

    fn copy(&self, from: &str, to: &Path, mode: u32) -> anyhow::Result<()> {
        install(&self.source.join(from), to, mode)
    }

    /// Writes the SBOM of each package that has a program.
    fn sboms(&self) -> anyhow::Result<Vec<PathBuf>> {
        let tool = tool(CYCLONEDX)?;
        let mut command = self.cargo();
        command.env("PATH", prepended(&tool)?).args(["cyclonedx", "--quiet", "--format", "json"]);
        run(command.args(["--spec-version", "1.5", "--no-build-deps"]))?;
        // They name our own packages by their paths.
        let own = format!("path+file://{}", self.source.display());
        let sboms = PACKAGES.map(|package| {
            let place = package.strip_prefix("holdfast-").unwrap_or("cli");
            let name = format!("{package}.cdx.json");
            let made = self.source.join("crates").join(place).join(&name);
            let text = fs::read_to_string(&made)
                .with_context(|| format!("read {}", made.display()))?
                .replace(&own, "path+file:///holdfast");
            let path = self.build.join("sbom").join(name);
            write(&path, text, 0o644)?;
            Ok(path)
        });
        sboms.into_iter().collect()
    }

    fn debian(&self, programs: &Path, sboms: &[PathBuf]) -> anyhow::Result<PathBuf> {
        let version = version(programs)?;
        let tree = self.build.join("debian");
        let _ = fs::remove_dir_all(&tree);
        self.lay_out(programs, &tree.join("usr"), "../etc/holdfast/config.toml")?;
        copy_all(sboms, &tree.join("usr/share/doc/holdfast/sbom"))?;
        for unit in UNITS {
            let text = fs::read_to_string(self.source.join("dist").join(unit))?;
            ensure!(
                unit.ends_with(".socket") || text.contains("ExecStart=/usr/local/bin/"),
                "{unit} starts another program"
            );
            let to = tree.join("lib/systemd/system").join(unit);
            write(&to, text.replace("=/usr/local/bin/", "=/usr/bin/"), 0o644)?;
        }
        let architecture = setup::output(Command::new("dpkg").arg("--print-architecture"))?;
        let size = setup::output(Command::new("du").args(["-sk", "--apparent-size"]).arg(&tree))?;
        let size = size.split_whitespace().next().unwrap_or("0").to_owned();
        let control = format!(
            "Package: holdfast\nVersion: {version}\nArchitecture: {}\nMaintainer: Holdfast's developers\n\
             Installed-Size: {size}\nRecommends: runc | crun\nSection: admin\nPriority: optional\n\
             Description: container supervisor whose daemon may die\n \
             Hosts many OCI containers from one daemon, which may crash, restart or be upgraded at any\n \
             moment: containers run on, and no exit status and no byte of output is lost. A runtime for\n \
             containerd and a monitor for podman and CRI-O are part of it.\n",
            architecture.trim()
        );
        write(&tree.join("DEBIAN/control"), &control, 0o644)?;
        write(&tree.join("DEBIAN/conffiles"), "/etc/holdfast/config.toml\n", 0o644)?;
        for script in ["postinst", "prerm", "postrm"] {
            let to = tree.join("DEBIAN").join(script);
            self.copy(&format!("dist/debian/{script}"), &to, 0o755)?;
        }
        make_readable(&tree)?;
        let package = format!("holdfast_{version}_{}.deb", architecture.trim());
        let package = self.output.join(package);
        run(self
            .command("dpkg-deb")
            .args(["--root-owner-group", "-Zxz", "--build"])
            .arg(&tree)
            .arg(&package)
            .stdout(std::process::Stdio::null()))?;
        Ok(package)
    }
}

/// A cargo command of crates.io, in a directory of our own. Returns the directory of its program.
fn tool((name, version): (&str, &str)) -> anyhow::Result<PathBuf> {
    let root = target().join("tools").join(format!("{name}-{version}"));
    if !root.join("bin").join(name).exists() {
        println!("building {name} {version} below target");
        run(crate::cargo()
            .args(["install", name, "--version", version, "--locked", "--quiet", "--root"])
            .arg(&root))?;
    }
    Ok(root.join("bin"))
}

/// Gives everybody the right to read a tree, whatever our umask is.
fn make_readable(tree: &Path) -> anyhow::Result<()> {
    run(Command::new("chmod").args(["-R", "u=rwX,go=rX", "--"]).arg(tree))
}

/// `PATH` with a directory before all others.
fn prepended(first: &Path) -> anyhow::Result<std::ffi::OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = std::iter::once(first.to_owned()).chain(std::env::split_paths(&path));
    Ok(std::env::join_paths(all)?)
}

fn copy_all(files: &[PathBuf], to: &Path) -> anyhow::Result<()> {
    files
        .iter()
        .try_for_each(|file| install(file, &to.join(file.file_name().unwrap_or_default()), 0o644))
}

fn install(from: &Path, to: &Path, mode: u32) -> anyhow::Result<()> {
    let about = || format!("copy {} to {}", from.display(), to.display());
    let content = fs::read(from).with_context(about)?;
    write(to, content, mode).with_context(about)
}

fn write(to: &Path, content: impl AsRef<[u8]>, mode: u32) -> anyhow::Result<()> {
    fs::create_dir_all(to.parent().unwrap_or(Path::new("/")))?;
    fs::write(to, content)?;
    Ok(fs::set_permissions(to, fs::Permissions::from_mode(mode))?)
}
