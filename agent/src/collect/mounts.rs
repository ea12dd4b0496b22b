//! `/proc/<pid>/mountinfo`: what is mounted where.

use super::text;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Major and minor number as printed: which filesystem it is.
    pub device_number: Vec<u8>,
    /// Which part of the filesystem is mounted: `/`, but for bind mounts and subvolumes.
    pub root: Vec<u8>,
    /// Where.
    pub point: Vec<u8>,
    /// Filesystem type.
    pub fstype: String,
    /// What is mounted: a device, a server's export, a name.
    pub source: String,
    /// Whether the filesystem itself is read-only. A mount may be so for us alone (the agent's unit
    /// asks for that), so the options of the mount do not count, only those of the super-block.
    pub readonly: bool,
}

/// Every line that is understood; where several are mounted at one point, only the last is seen there.
/// `None` if there are lines and not one is understood.
#[must_use]
pub fn parse(mountinfo: &[u8]) -> Option<Vec<Mount>> {
    let mut mounts: Vec<Mount> = Vec::new();
    let mut at = std::collections::HashMap::new();
    let mut lines = 0;
    for line in text::lines(mountinfo) {
        lines += 1;
        let Some(mount) = parse_line(line) else {
            continue;
        };
        match at.get(&mount.point) {
            Some(&place) => mounts[place] = mount,
            None => {
                at.insert(mount.point.clone(), mounts.len());
                mounts.push(mount);
            }
        }
    }
    (lines == 0 || !mounts.is_empty()).then_some(mounts)
}

/// `36 35 98:0 /root /point rw,noatime master:1 - ext3 /dev/root rw,errors=continue`; between the mount's
/// options and the dash is any number of fields.
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    text::unsigned(fields.next()?)?;
    text::unsigned(fields.next()?)?;
    let device_number = fields.next()?.to_vec();
    let root = unescape(fields.next()?);
    let point = unescape(fields.next()?);
    let _options = fields.next()?;
    fields.find(|&field| field == b"-")?;
    let fstype = unescape(fields.next()?);
    let source = unescape(fields.next()?);
    let super_options = fields.next()?;
    Some(Mount {
        device_number,
        root,
        point,
        fstype: text::lossy(&fstype).into_owned(),
        source: text::lossy(&source).into_owned(),
        readonly: super_options
            .split(|&byte| byte == b',')
            .any(|option| option == b"ro"),
    })
}

/// Undoes the kernel's escapes: a backslash and three octal digits are one byte.
#[must_use]
pub fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = |byte: u8| (b'0'..=b'7').contains(&byte).then(|| byte - b'0');
        let code = match after {
            [a, b, c, ..] if first == b'\\' => {
                let high = octal(*a).filter(|&high| high <= 3);
                high.zip(octal(*b)).zip(octal(*c))
            }
            _ => None,
        };
        match code {
            Some(((a, b), c)) => {
                plain.push(a << 6 | b << 3 | c);
                rest = &after[3..];
            }
            None => {
                plain.push(first);
                rest = after;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn super_block_options_count_and_escapes_are_undone() {
        let mounts = parse(
            b"22 1 8:1 / / ro,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro\n\
              23 22 8:2 / /mnt/a\\040b\\011c rw - xfs /dev/my\\134disk ro\n\
              not a mount\n\
              24 22 0:5 / /mnt/twice rw master:2 propagate_from:1 - tmpfs one rw\n\
              25 24 0:6 /part /mnt/twice rw - tmpfs two rw\n",
        )
        .expect("understood");
        assert_eq!(mounts.len(), 3);
        assert!(!mounts[0].readonly, "only the mount is read-only");
        assert_eq!(mounts[1].point, b"/mnt/a b\tc");
        assert_eq!(mounts[1].source, "/dev/my\\disk");
        assert!(mounts[1].readonly);
        assert_eq!(
            (mounts[2].source.as_str(), mounts[2].root.as_slice()),
            ("two", &b"/part"[..])
        );
        assert_eq!(parse(b""), Some(Vec::new()));
        assert_eq!(parse(b"nothing of the kind\n"), None);
    }

    proptest! {
        #[test]
        fn garbage_is_survived(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }

        #[test]
        fn escapes_come_back(bytes: Vec<u8>) {
            let escaped: String = bytes.iter().map(|byte| format!("\\{byte:03o}")).collect();
            prop_assert_eq!(unescape(escaped.as_bytes()), bytes);
        }
    }
}
