//! A filesystem of its own whose power can be cut: ext4 on a loop device over a file.
//!
//! What has reached the file is what the disk holds; what waits in the page cache of the filesystem is what a
//! power cut takes. So a copy of the file, taken while the filesystem is mounted and written, is the disk after
//! a cut, with the journal to be replayed. Tried by hand: an append without a sync is not in the copy, one with
//! a sync is, a file that was made without a sync has no bytes, a rename without a sync of its folder is undone.
//! The copy keeps the order of writes; torn and reordered ones are tried on the simulated disk of
//! `proto/src/log/faulty.rs`. Needs root, for the mount.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::Command,
};

use anyhow::{Context as _, ensure};

/// The mounted filesystem; unmounted and removed when it is dropped.
pub(crate) struct LoopDisk {
    image: PathBuf,
    copy: PathBuf,
    mount: PathBuf,
}

impl LoopDisk {
    /// Makes a filesystem of `bytes` in the file `image` and mounts it on the new folder `mount`.
    pub(crate) fn make(image: PathBuf, mount: PathBuf, bytes: u64) -> anyhow::Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "a power cut needs a filesystem of its own, and a mount needs root"
        );
        File::create_new(&image)?.set_len(bytes)?;
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))?;
        fs::create_dir(&mount)?;
        let copy = image.with_extension("copy");
        let disk = Self { image, copy, mount };
        disk.mount()?;
        Ok(disk)
    }

    /// Copies the disk as it is at this moment; whoever writes should be stopped.
    pub(crate) fn copy(&self) -> anyhow::Result<()> {
        let mut copy = Command::new("cp");
        run(copy.arg("--sparse=always").args([&self.image, &self.copy]))
    }

    /// Puts the copy in the place of the disk: what was not in it never was. Nobody may use the mount.
    pub(crate) fn cut(&self) -> anyhow::Result<()> {
        run(Command::new("umount").arg(&self.mount))?;
        fs::rename(&self.copy, &self.image)?;
        self.mount()
    }

    fn mount(&self) -> anyhow::Result<()> {
        let mut mount = Command::new("mount");
        run(mount.args(["-o", "loop"]).args([&self.image, &self.mount]))
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("umount").arg(&self.mount)) {
            eprintln!("{} is left behind: {error}", self.mount.display());
        }
    }
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
