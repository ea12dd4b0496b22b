//! What root makes in a service's folder belongs to the service.
//!
//! `muster-agent enrol` and `muster-aggregator init` are run by root, but their files are read by services that are
//! not root. So whatever they make takes the owner of the folder it stands in; for anybody but root that is a matter
//! of course and nothing happens.
//!
//! Only open descriptors are given away, never names: the folder's owner could have put something else there.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown},
    path::Path,
};

use rustix::fs::OFlags;

/// Gives a file that was just made, and is still open, to the owner of the folder it was made in.
///
/// # Errors
/// When the folder cannot be looked at, or another than root made the file in a folder of somebody else.
pub fn give_file(file: &File, folder: &Path) -> io::Result<()> {
    let (wanted, have) = (fs::metadata(folder)?, file.metadata()?);
    if wanted.uid() == have.uid() {
        return Ok(());
    }
    fchown(file, Some(wanted.uid()), Some(wanted.gid()))
}

/// Gives a folder that was just made to the owner of the folder it stands in. A symbolic link is refused.
///
/// # Errors
/// As [`give_file`], and when `folder` is not a folder.
pub fn give_folder(folder: &Path) -> io::Result<()> {
    let flags = (OFlags::DIRECTORY | OFlags::NOFOLLOW).bits();
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags.cast_signed())
        .open(folder)?;
    give_file(&opened, &folder.join(".."))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    /// Some user who is not the one that runs the tests, as far as that can be arranged: only root can.
    const SOMEBODY: u32 = 54_321;

    #[test]
    fn what_is_made_belongs_to_the_owner_of_the_folder() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().metadata().expect("metadata").uid() == 0;
        if root {
            chown(folder.path(), Some(SOMEBODY), Some(SOMEBODY)).expect("root may");
        }
        let owner = folder.path().metadata().expect("metadata").uid();

        let below = folder.path().join("below");
        fs::create_dir(&below).expect("made");
        give_folder(&below).expect("given");
        assert_eq!(below.metadata().expect("metadata").uid(), owner);

        let file = File::create(below.join("file")).expect("made");
        give_file(&file, &below).expect("given");
        let metadata = file.metadata().expect("metadata");
        assert_eq!(metadata.uid(), owner);
        if root {
            assert_eq!((owner, metadata.gid()), (SOMEBODY, SOMEBODY));
        }
    }

    #[test]
    fn a_link_put_in_the_place_of_a_folder_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let elsewhere = tempfile::tempdir().expect("a folder");
        let link = folder.path().join("below");
        symlink(elsewhere.path(), &link).expect("linked");
        assert!(give_folder(&link).is_err());
    }
}
