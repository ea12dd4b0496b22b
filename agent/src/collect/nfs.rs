//! `/proc/net/rpc/nfs` and `nfsd`: requests of this host as a client and as a server of NFS.
//!
//! Each line is a word and numbers. `proc3` and its like have how many numbers follow, and one for each procedure of
//! that version of the protocol, in the order of its specification (RFC 1094, 1813) or of the kernel's list.

use std::time::Duration;

use muster_proto::series::{Kind, Scale};

use super::{About, CollectError, Collector, Outcome, Readings, text};
use crate::host::{HostRoot, KeptFile};

const CLIENT: &str = "proc/net/rpc/nfs";
const SERVER: &str = "proc/net/rpc/nfsd";

const V2: &str = "Null GetAttr SetAttr Root Lookup ReadLink Read WrCache Write Create Remove Rename Link SymLink MkDir RmDir \
    ReadDir FsStat";
const V3: &str = "Null GetAttr SetAttr Lookup Access ReadLink Read Write Create MkDir SymLink MkNod Remove RmDir Rename Link \
    ReadDir ReadDirPlus FsStat FsInfo PathConf Commit";
const V4_CLIENT: &str = "Null Read Write Commit Open OpenConfirm OpenNoattr OpenDowngrade Close Setattr FsInfo Renew SetClientID \
    SetClientIDConfirm Lock Lockt Locku Access Getattr Lookup LookupRoot Remove Rename Link Symlink Create Pathconf StatFs ReadLink \
    ReadDir ServerCaps DelegReturn GetACL SetACL FsLocations ReleaseLockowner Secinfo FsidPresent ExchangeID CreateSession \
    DestroySession Sequence GetLeaseTime ReclaimComplete LayoutGet GetDeviceInfo LayoutCommit LayoutReturn SecinfoNoName TestStateID \
    FreeStateID GetDeviceList BindConnToSession DestroyClientID Seek Allocate DeAllocate LayoutStats Clone";
/// From operation 3 on; the first three are no operations.
const V4_SERVER: &str = "- - - Access Close Commit Create DelegPurge DelegReturn GetAttr GetFH Link Lock Lockt Locku Lookup LookupRoot \
    Nverify Open OpenAttr OpenConfirm OpenDgrd PutFH PutPubFH PutRootFH Read ReadDir ReadLink Remove Rename Renew RestoreFH SaveFH \
    SecInfo SetAttr SetClientID SetClientIDConfirm Verify Write RelLockOwner";

/// Most series of one file.
const MAX_SERIES: usize = 160;

static CLIENT_ABOUT: About = About {
    name: "nfs",
    every: Duration::from_secs(30),
    reads: "/proc/net/rpc/nfs",
    needs: "",
    what: "requests, retransmissions and connections as a client of NFS",
};

static SERVER_ABOUT: About = About {
    name: "nfsd",
    every: Duration::from_secs(30),
    reads: "/proc/net/rpc/nfsd",
    needs: "",
    what: "requests, threads, cache and errors as a server of NFS",
};

/// One of the two.
#[derive(Debug)]
pub struct Nfs {
    about: &'static About,
    path: &'static str,
    prefix: &'static str,
    file: KeptFile,
}

impl Nfs {
    /// As a client.
    #[must_use]
    pub fn client() -> Self {
        Self {
            about: &CLIENT_ABOUT,
            path: CLIENT,
            prefix: "node_nfs_",
            file: KeptFile::new(CLIENT),
        }
    }

    /// As a server.
    #[must_use]
    pub fn server() -> Self {
        Self {
            about: &SERVER_ABOUT,
            path: SERVER,
            prefix: "node_nfsd_",
            file: KeptFile::new(SERVER),
        }
    }
}

impl Collector for Nfs {
    fn about(&self) -> &'static About {
        self.about
    }

    fn collect(&mut self, host: &HostRoot, out: &mut Readings) -> Result<Outcome, CollectError> {
        let is_server = self.path == SERVER;
        let Some(bytes) = self.file.read_if_there(host)? else {
            return Ok(Outcome::NoData);
        };
        if !out.admits_object(MAX_SERIES) {
            return Ok(Outcome::Read);
        }
        let mut sink = Sink {
            prefix: self.prefix,
            out,
        };
        for line in text::lines(bytes) {
            let mut fields = text::fields(line);
            let key = fields.next().unwrap_or_default();
            let numbers: Option<Vec<u64>> = match key {
                // Shares of time, with a point: not shown.
                b"th" => fields
                    .next()
                    .and_then(text::unsigned)
                    .map(|threads| vec![threads]),
                _ => fields.map(text::unsigned).collect(),
            };
            let numbers = numbers.ok_or(CollectError::Malformed {
                path: self.path,
                what: "a word and numbers",
            })?;
            if is_server {
                sink.server(key, &numbers);
            } else {
                sink.client(key, &numbers);
            }
        }
        Ok(Outcome::Read)
    }
}

struct Sink<'a> {
    prefix: &'static str,
    out: &'a mut Readings,
}

impl Sink<'_> {
    fn client(&mut self, key: &[u8], numbers: &[u64]) {
        match (key, numbers) {
            (b"net", [_, udp, tcp, connections, ..]) => {
                self.packets("protocol", *udp, *tcp);
                self.counter("connections_total", *connections);
            }
            (b"rpc", [count, retransmissions, refreshes, ..]) => {
                self.counter("rpcs_total", *count);
                self.counter("rpc_retransmissions_total", *retransmissions);
                self.counter("rpc_authentication_refreshes_total", *refreshes);
            }
            (b"proc2", [_, counts @ ..]) => self.requests("2", V2, counts),
            (b"proc3", [_, counts @ ..]) => self.requests("3", V3, counts),
            (b"proc4", [_, counts @ ..]) => self.requests("4", V4_CLIENT, counts),
            _ => {}
        }
    }

    fn server(&mut self, key: &[u8], numbers: &[u64]) {
        match (key, numbers) {
            (b"rc", [hits, misses, nocache, ..]) => {
                self.counter("reply_cache_hits_total", *hits);
                self.counter("reply_cache_misses_total", *misses);
                self.counter("reply_cache_nocache_total", *nocache);
            }
            (b"fh", [stale, ..]) => self.counter("file_handles_stale_total", *stale),
            (b"io", [read, written, ..]) => {
                self.counter("disk_bytes_read_total", *read);
                self.counter("disk_bytes_written_total", *written);
            }
            (b"th", [threads]) => self.put("server_threads", Kind::Gauge, &[], &[], *threads),
            (b"ra", [size, .., not_found]) => {
                self.put("read_ahead_cache_size_blocks", Kind::Gauge, &[], &[], *size);
                self.counter("read_ahead_cache_not_found_total", *not_found);
            }
            (b"net", [_, udp, tcp, connections, ..]) => {
                self.packets("proto", *udp, *tcp);
                self.counter("connections_total", *connections);
            }
            (b"rpc", [count, _, format, authentication, client, ..]) => {
                self.counter("server_rpcs_total", *count);
                for (error, count) in [("fmt", format), ("auth", authentication), ("cInt", client)]
                {
                    self.put(
                        "rpc_errors_total",
                        Kind::Counter,
                        &["error"],
                        &[error],
                        *count,
                    );
                }
            }
            (b"proc2", [_, counts @ ..]) => self.requests("2", V2, counts),
            (b"proc3", [_, counts @ ..]) => self.requests("3", V3, counts),
            (b"proc4ops", [_, counts @ ..]) => self.requests("4", V4_SERVER, counts),
            _ => {}
        }
    }

    fn counter(&mut self, name: &str, value: u64) {
        self.put(name, Kind::Counter, &[], &[], value);
    }

    fn packets(&mut self, label: &str, udp: u64, tcp: u64) {
        for (protocol, packets) in [("udp", udp), ("tcp", tcp)] {
            self.put(
                "packets_total",
                Kind::Counter,
                &[label],
                &[protocol],
                packets,
            );
        }
    }

    fn requests(&mut self, version: &str, methods: &str, counts: &[u64]) {
        for (method, count) in methods.split_ascii_whitespace().zip(counts) {
            if method != "-" {
                let labels = [version, method];
                self.put(
                    "requests_total",
                    Kind::Counter,
                    &["proto", "method"],
                    &labels,
                    *count,
                );
            }
        }
    }

    fn put(&mut self, name: &str, kind: Kind, names: &[&str], values: &[&str], value: u64) {
        let name = format!("{}{name}", self.prefix);
        if let Some(family) = self.out.dynamic_family(&name, kind, Scale::One, names) {
            self.out.unsigned(family, values, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

    #[test]
    fn a_client_is_told() {
        let mut host = testing::Host::new();
        assert_eq!(host.run(&mut Nfs::client()).ok(), Some(Outcome::NoData));
        host.write(
            CLIENT,
            "net 70 70 69 45\nrpc 1218785755 374636 1218815394\nproc2 18 2 69 0\nproc4 61 1 2 3\n",
        );
        let values = host.collect(&mut Nfs::client());
        assert_eq!(values[r#"node_nfs_packets_total{protocol="tcp"}"#], 69.0);
        assert_eq!(values["node_nfs_rpc_retransmissions_total"], 374_636.0);
        assert_eq!(
            values[r#"node_nfs_requests_total{proto="2",method="GetAttr"}"#],
            69.0
        );
        assert_eq!(
            values[r#"node_nfs_requests_total{proto="4",method="Write"}"#],
            3.0
        );
        assert_eq!(values.len(), 2 + 1 + 3 + 3 + 3);
        host.write(CLIENT, "net 70 x\n");
        assert!(host.fails(&mut Nfs::client()));
    }

    #[test]
    fn a_server_is_told() {
        let mut host = testing::Host::new();
        host.write(
            SERVER,
            "rc 0 6 18622\nfh 1 0 0 0 0\nio 157286400 0\nth 8 0 0.000 0.100\nra 32 0 0 0 0 0 0 0 0 0 0 5\n\
             net 18628 0 18628 6\nrpc 18628 3 1 2 0\nproc4ops 72 0 0 0 1098 2\n",
        );
        let values = host.collect(&mut Nfs::server());
        assert_eq!(values["node_nfsd_server_threads"], 8.0);
        assert_eq!(values["node_nfsd_read_ahead_cache_not_found_total"], 5.0);
        assert_eq!(values[r#"node_nfsd_rpc_errors_total{error="auth"}"#], 2.0);
        assert_eq!(
            values[r#"node_nfsd_requests_total{proto="4",method="Access"}"#],
            1098.0
        );
        assert_eq!(values.len(), 3 + 1 + 2 + 1 + 2 + 3 + 4 + 2);
    }

    testing::garbage!(
        Nfs::server(),
        SERVER,
        "(rc|th|ra|rpc|proc3|x)( [0-9x.]{1,21}){0,9}\n"
    );
}
