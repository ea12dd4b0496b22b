//! Whose files `muster login` writes: of the user who runs it, or of the one who called `sudo`.
//!
//! Under `sudo` the files belong into the home of the user who will use them. They are written with that
//! user's rights, given up for good beforehand: a link in a home that its owner can change must not lead
//! root anywhere.

use std::{env, fs, io, path::PathBuf};

use rustix::{
    process::{Gid, Uid, geteuid},
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

/// One entry of `/etc/passwd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Login name.
    pub name: String,
    uid: u32,
    gid: u32,
    /// Home folder.
    pub home: PathBuf,
}

impl User {
    /// Reads a line of `/etc/passwd`.
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = PathBuf::from(fields.nth(1)?);
        // The kernel takes the largest number for "unchanged".
        let legal = uid != u32::MAX && gid != u32::MAX;
        (legal && !name.is_empty() && home.is_absolute()).then_some(Self {
            name,
            uid,
            gid,
            home,
        })
    }

    fn find(passwd: &str, wanted: impl Fn(&Self) -> bool) -> Option<Self> {
        passwd.lines().filter_map(Self::parse).find(wanted)
    }

    /// The user whom this process runs as, where `/etc/passwd` knows them.
    #[must_use]
    pub fn own() -> Option<Self> {
        let me = geteuid().as_raw();
        Self::find(&passwd(), |user| user.uid == me)
    }

    /// The user who called `sudo`, when this is root on behalf of somebody else.
    #[must_use]
    pub fn behind_sudo() -> Option<Self> {
        let name = env::var("SUDO_USER").ok()?;
        if !geteuid().is_root() {
            return None;
        }
        Self::find(&passwd(), |user| user.name == name && user.uid != 0)
    }

    /// Where this user's contexts are.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.home.join(".config/muster/config.toml")
    }

    /// Gives up root's rights for this user's, for the thread that calls; there is no way back.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn act_as(&self) -> io::Result<()> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        set_thread_groups(&[gid])?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
        Ok(())
    }
}

/// Users from elsewhere (LDAP) are not in it; then nothing is known of them.
fn passwd() -> String {
    fs::read_to_string("/etc/passwd").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_and_broken_lines_are_none() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nbroken:x:\njo:x:1000:100:Jo,,:/home/jo:/bin/sh\n\
                      odd:x:7:7::relative:/bin/sh\n";
        let jo = User::find(passwd, |user| user.name == "jo").expect("jo");
        assert_eq!((jo.uid, jo.gid), (1000, 100));
        assert_eq!(
            jo.config(),
            PathBuf::from("/home/jo/.config/muster/config.toml")
        );
        assert_eq!(User::find(passwd, |user| user.uid == 7), None);
        assert_eq!(User::find(passwd, |user| user.name == "broken"), None);
    }
}
