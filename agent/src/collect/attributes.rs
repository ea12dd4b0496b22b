//! Folders of files with one number each that become series one by one: what several collectors of rare
//! hardware have in common.

use muster_proto::{
    catalog::FamilyId,
    series::{Kind, Scale},
};

use super::{Readings, sysfs::Files};
use crate::host::HostRoot;

/// A file and the metric it becomes.
#[derive(Debug)]
pub struct Attribute {
    /// Path below the object's folder.
    pub file: &'static str,
    /// The metric's whole name.
    pub metric: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Unit of what is printed.
    pub scale: Scale,
    /// What is printed counts so many.
    pub factor: u64,
}

/// Files of one kind of object.
#[derive(Debug)]
pub struct Attributes {
    all: &'static [Attribute],
    labels: &'static [&'static str],
    families: Vec<Option<FamilyId>>,
}

impl Attributes {
    /// These files; the series have these labels.
    #[must_use]
    pub const fn new(all: &'static [Attribute], labels: &'static [&'static str]) -> Self {
        Self {
            all,
            labels,
            families: Vec::new(),
        }
    }

    /// Puts what the files below `folder` hold; those that are not there, or hold no number, are absent.
    pub fn put(
        &mut self,
        files: &mut Files,
        host: &HostRoot,
        folder: &[&[u8]],
        labels: &[&str],
        out: &mut Readings,
    ) {
        if !out.admits_object(self.all.len()) {
            return;
        }
        if self.families.is_empty() {
            let open = |attribute: &Attribute| {
                out.dynamic_family(
                    attribute.metric,
                    attribute.kind,
                    attribute.scale,
                    self.labels,
                )
            };
            self.families = self.all.iter().map(open).collect();
        }
        let folder = folder.concat();
        for (attribute, family) in self.all.iter().zip(&self.families) {
            let path: [&[u8]; 3] = [&folder, b"/", attribute.file.as_bytes()];
            if let (Some(family), Some(value)) = (family, files.unsigned(host, &path)) {
                out.unsigned(*family, labels, value.saturating_mul(attribute.factor));
            }
        }
    }
}

/// A list of [`Attribute`]s: file, metric, type, unit, and a factor if there is one.
macro_rules! attributes {
    ($($file:literal $metric:literal $kind:ident $scale:ident $(* $factor:literal)?;)*) => {
        &[$($crate::collect::attributes::Attribute {
            file: $file,
            metric: $metric,
            kind: muster_proto::series::Kind::$kind,
            scale: muster_proto::series::Scale::$scale,
            factor: 1 $(* $factor)?,
        }),*]
    };
}
pub(super) use attributes;
