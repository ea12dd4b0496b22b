//! Every metric of a host: name, type, unit, labels and meaning. The one list.
//!
//! Where node_exporter has a metric, its name, labels, type and unit are node_exporter's; what it lacks is
//! `muster_*`. A collector takes its families from here, the scrape page its types and help texts.
//! Families whose names the kernel makes (`/proc/meminfo` lines that are not listed) are named by
//! [`memory_name`] and described by [`help`] all the same.

use crate::series::{Family, Kind, Scale};

/// Place of a family in the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FamilyId(pub u32);

/// One line of the catalogue.
#[derive(Debug)]
pub struct Metric {
    /// Prometheus name.
    pub name: &'static str,
    /// Type.
    pub kind: Kind,
    /// Unit of the raw values.
    pub scale: Scale,
    /// Label names in the order in which values are given.
    pub labels: &'static [&'static str],
    /// One sentence for `# HELP`.
    pub help: &'static str,
}

macro_rules! catalog {
    ($($id:ident $name:literal $kind:ident $scale:ident [$($label:literal)*] $help:literal;)*) => {
        #[expect(non_camel_case_types, clippy::upper_case_acronyms, reason = "numbers the lines below")]
        enum Number { $($id,)* }
        $(
            #[doc = concat!("`", $name, "`: ", $help)]
            pub const $id: FamilyId = FamilyId(Number::$id as u32);
        )*
        /// All lines; a [`FamilyId`] is an index into it.
        pub static METRICS: &[Metric] = &[
            $(Metric {
                name: $name,
                kind: Kind::$kind,
                scale: Scale::$scale,
                labels: &[$($label),*],
                help: $help,
            },)*
        ];
    };
}

catalog! {
    // uname, os, time
    UNAME_INFO "node_uname_info" Gauge One ["sysname" "release" "version" "machine" "nodename" "domainname"]
        "Kernel and host name as uname(2) gives them, in labels.";
    OS_INFO "node_os_info" Gauge One ["build_id" "id" "id_like" "image_id" "image_version" "name" "pretty_name" "variant" "variant_id" "version" "version_codename" "version_id"]
        "Operating system as os-release describes it, in labels.";
    OS_VERSION "node_os_version" Gauge Float ["id" "id_like" "name"]
        "Major and minor number of the operating system's version.";
    TIME_SECONDS "node_time_seconds" Gauge Milli []
        "Clock of the host when the sample was taken, in seconds since 1970.";
    EXPORTER_BUILD_INFO "node_exporter_build_info" Gauge One ["branch" "goarch" "goos" "goversion" "revision" "tags" "version"]
        "Stands for the exporter's version so that dashboards made for node_exporter find it; the version is that of muster-agent.";
    DMI_INFO "node_dmi_info" Gauge One ["bios_date" "bios_vendor" "bios_version" "board_name" "board_vendor" "board_version" "chassis_vendor" "chassis_version" "product_family" "product_name" "product_sku" "product_version" "system_vendor"]
        "Hardware as the firmware describes it, in labels.";

    // cpu and stat
    CPU_SECONDS "node_cpu_seconds_total" Counter Centi ["cpu" "mode"]
        "Time each CPU spent in each mode.";
    CPU_GUEST_SECONDS "node_cpu_guest_seconds_total" Counter Centi ["cpu" "mode"]
        "Time each CPU spent running virtual machines; also contained in the modes user and nice.";
    BOOT_TIME_SECONDS "node_boot_time_seconds" Gauge One []
        "When the kernel booted, in seconds since 1970.";
    CONTEXT_SWITCHES "node_context_switches_total" Counter One []
        "Context switches on all CPUs.";
    FORKS "node_forks_total" Counter One []
        "Processes and threads created.";
    INTERRUPTS "node_intr_total" Counter One []
        "Interrupts served.";
    PROCS_RUNNING "node_procs_running" Gauge One []
        "Tasks that are running or could run.";
    PROCS_BLOCKED "node_procs_blocked" Gauge One []
        "Tasks that wait for input or output to finish.";

    // loadavg
    LOAD1 "node_load1" Gauge Centi []
        "Load average over 1 minute.";
    LOAD5 "node_load5" Gauge Centi []
        "Load average over 5 minutes.";
    LOAD15 "node_load15" Gauge Centi []
        "Load average over 15 minutes.";

    // diskstats
    DISK_READS_COMPLETED "node_disk_reads_completed_total" Counter One ["device"]
        "Reads finished.";
    DISK_READS_MERGED "node_disk_reads_merged_total" Counter One ["device"]
        "Reads that were merged with another before they reached the disk.";
    DISK_READ_BYTES "node_disk_read_bytes_total" Counter Sector ["device"]
        "Bytes read.";
    DISK_READ_TIME "node_disk_read_time_seconds_total" Counter Milli ["device"]
        "Time reads took, summed over reads.";
    DISK_WRITES_COMPLETED "node_disk_writes_completed_total" Counter One ["device"]
        "Writes finished.";
    DISK_WRITES_MERGED "node_disk_writes_merged_total" Counter One ["device"]
        "Writes that were merged with another before they reached the disk.";
    DISK_WRITTEN_BYTES "node_disk_written_bytes_total" Counter Sector ["device"]
        "Bytes written.";
    DISK_WRITE_TIME "node_disk_write_time_seconds_total" Counter Milli ["device"]
        "Time writes took, summed over writes.";
    DISK_IO_NOW "node_disk_io_now" Gauge One ["device"]
        "Requests in flight.";
    DISK_IO_TIME "node_disk_io_time_seconds_total" Counter Milli ["device"]
        "Time with at least one request in flight.";
    DISK_IO_TIME_WEIGHTED "node_disk_io_time_weighted_seconds_total" Counter Milli ["device"]
        "Time requests were in flight, summed over requests.";
    DISK_DISCARDS_COMPLETED "node_disk_discards_completed_total" Counter One ["device"]
        "Discards finished.";
    DISK_DISCARDS_MERGED "node_disk_discards_merged_total" Counter One ["device"]
        "Discards that were merged with another.";
    DISK_DISCARDED_SECTORS "node_disk_discarded_sectors_total" Counter One ["device"]
        "Sectors of 512 bytes discarded.";
    DISK_DISCARD_TIME "node_disk_discard_time_seconds_total" Counter Milli ["device"]
        "Time discards took, summed over discards.";
    DISK_FLUSH_REQUESTS "node_disk_flush_requests_total" Counter One ["device"]
        "Flushes finished.";
    DISK_FLUSH_TIME "node_disk_flush_requests_time_seconds_total" Counter Milli ["device"]
        "Time flushes took, summed over flushes.";

    // filesystem
    FILESYSTEM_SIZE "node_filesystem_size_bytes" Gauge One ["device" "fstype" "mountpoint"]
        "Size of the filesystem.";
    FILESYSTEM_FREE "node_filesystem_free_bytes" Gauge One ["device" "fstype" "mountpoint"]
        "Free space, what is reserved for root included.";
    FILESYSTEM_AVAIL "node_filesystem_avail_bytes" Gauge One ["device" "fstype" "mountpoint"]
        "Space that ordinary users may still use.";
    FILESYSTEM_FILES "node_filesystem_files" Gauge One ["device" "fstype" "mountpoint"]
        "Inodes in all.";
    FILESYSTEM_FILES_FREE "node_filesystem_files_free" Gauge One ["device" "fstype" "mountpoint"]
        "Inodes free.";
    FILESYSTEM_READONLY "node_filesystem_readonly" Gauge One ["device" "fstype" "mountpoint"]
        "1 when the filesystem is mounted read-only.";
    FILESYSTEM_DEVICE_ERROR "node_filesystem_device_error" Gauge One ["device" "fstype" "mountpoint"]
        "1 when the filesystem could not be asked for its size.";
    FILESYSTEM_HUNG "muster_host_filesystem_hung" Gauge One ["mountpoint"]
        "1 while statvfs(2) of the mount point does not return.";

    // netdev
    NETWORK_RECEIVE_BYTES "node_network_receive_bytes_total" Counter One ["device"]
        "Bytes received.";
    NETWORK_RECEIVE_PACKETS "node_network_receive_packets_total" Counter One ["device"]
        "Packets received.";
    NETWORK_RECEIVE_ERRS "node_network_receive_errs_total" Counter One ["device"]
        "Packets received with errors.";
    NETWORK_RECEIVE_DROP "node_network_receive_drop_total" Counter One ["device"]
        "Received packets dropped.";
    NETWORK_RECEIVE_FIFO "node_network_receive_fifo_total" Counter One ["device"]
        "Receive FIFO overruns.";
    NETWORK_RECEIVE_FRAME "node_network_receive_frame_total" Counter One ["device"]
        "Packets received with framing errors.";
    NETWORK_RECEIVE_COMPRESSED "node_network_receive_compressed_total" Counter One ["device"]
        "Compressed packets received.";
    NETWORK_RECEIVE_MULTICAST "node_network_receive_multicast_total" Counter One ["device"]
        "Multicast packets received.";
    NETWORK_TRANSMIT_BYTES "node_network_transmit_bytes_total" Counter One ["device"]
        "Bytes sent.";
    NETWORK_TRANSMIT_PACKETS "node_network_transmit_packets_total" Counter One ["device"]
        "Packets sent.";
    NETWORK_TRANSMIT_ERRS "node_network_transmit_errs_total" Counter One ["device"]
        "Packets that could not be sent because of errors.";
    NETWORK_TRANSMIT_DROP "node_network_transmit_drop_total" Counter One ["device"]
        "Packets dropped on sending.";
    NETWORK_TRANSMIT_FIFO "node_network_transmit_fifo_total" Counter One ["device"]
        "Transmit FIFO errors.";
    NETWORK_TRANSMIT_COLLS "node_network_transmit_colls_total" Counter One ["device"]
        "Collisions on sending.";
    NETWORK_TRANSMIT_CARRIER "node_network_transmit_carrier_total" Counter One ["device"]
        "Losses of carrier on sending.";
    NETWORK_TRANSMIT_COMPRESSED "node_network_transmit_compressed_total" Counter One ["device"]
        "Compressed packets sent.";

    // vmstat
    VMSTAT_PGPGIN "node_vmstat_pgpgin" Untyped One []
        "KiB paged in from disks.";
    VMSTAT_PGPGOUT "node_vmstat_pgpgout" Untyped One []
        "KiB paged out to disks.";
    VMSTAT_PSWPIN "node_vmstat_pswpin" Untyped One []
        "Pages swapped in.";
    VMSTAT_PSWPOUT "node_vmstat_pswpout" Untyped One []
        "Pages swapped out.";
    VMSTAT_PGFAULT "node_vmstat_pgfault" Untyped One []
        "Page faults.";
    VMSTAT_PGMAJFAULT "node_vmstat_pgmajfault" Untyped One []
        "Page faults that had to read from a disk.";
    VMSTAT_OOM_KILL "node_vmstat_oom_kill" Untyped One []
        "Processes killed for lack of memory.";

    // pressure
    PRESSURE_CPU_WAITING "node_pressure_cpu_waiting_seconds_total" Counter Micro []
        "Time in which some task waited for a CPU.";
    PRESSURE_MEMORY_WAITING "node_pressure_memory_waiting_seconds_total" Counter Micro []
        "Time in which some task was stalled for lack of memory.";
    PRESSURE_MEMORY_STALLED "node_pressure_memory_stalled_seconds_total" Counter Micro []
        "Time in which all tasks that could run were stalled for lack of memory.";
    PRESSURE_IO_WAITING "node_pressure_io_waiting_seconds_total" Counter Micro []
        "Time in which some task waited for input or output.";
    PRESSURE_IO_STALLED "node_pressure_io_stalled_seconds_total" Counter Micro []
        "Time in which all tasks that could run waited for input or output.";
    PRESSURE_IRQ_STALLED "node_pressure_irq_stalled_seconds_total" Counter Micro []
        "Time in which all tasks that could run were stalled by interrupts.";

    // filefd
    FILEFD_ALLOCATED "node_filefd_allocated" Gauge One []
        "File handles allocated by the kernel.";
    FILEFD_MAXIMUM "node_filefd_maximum" Gauge One []
        "Most file handles the kernel allocates.";

    // systemd
    SYSTEMD_UNIT_STATE "node_systemd_unit_state" Gauge One ["name" "state" "type"]
        "1 for the state the unit is in, 0 for the other states; type is the service's Type.";
    SYSTEMD_UNITS "node_systemd_units" Gauge One ["state"]
        "Units by state.";
    SYSTEMD_SYSTEM_RUNNING "node_systemd_system_running" Gauge One []
        "1 when systemd says the system is running and nothing has failed.";
    SYSTEMD_VERSION "node_systemd_version" Gauge Float ["version"]
        "Version of systemd.";
    SYSTEMD_SERVICE_RESTARTS "node_systemd_service_restart_total" Counter One ["name"]
        "Automatic restarts of the service since it was loaded.";
    SYSTEMD_UNITS_UNOBSERVED "muster_host_systemd_units_unobserved" Gauge One []
        "Units that match the patterns but are beyond the bound on their number.";

    // the pass itself
    SCRAPE_COLLECTOR_DURATION "node_scrape_collector_duration_seconds" Gauge Nano ["collector"]
        "Time the collector took in its last round.";
    SCRAPE_COLLECTOR_SUCCESS "node_scrape_collector_success" Gauge One ["collector"]
        "1 when the collector read all it should in its last round.";
    AGENT_INFO "muster_agent_info" Gauge One ["version"]
        "Version of the agent, in a label.";
    AGENT_CPU_SECONDS "muster_agent_cpu_seconds_total" Counter Micro []
        "CPU time of the agent's process, user and system, since it started.";
    AGENT_RESIDENT_BYTES "muster_agent_resident_memory_bytes" Gauge One []
        "Resident memory of the agent's process.";
    AGENT_START_TIME "muster_agent_start_time_seconds" Gauge Milli []
        "When the agent's process started, in seconds since 1970.";
    AGENT_ROUND_SECONDS "muster_agent_round_seconds" Gauge Nano []
        "Time the whole round of collectors took.";
    AGENT_TICKS_MISSED "muster_agent_ticks_missed_total" Counter One []
        "Ticks at which no sample was taken, because the round before had not ended or the host was suspended.";
    AGENT_SERIES "muster_agent_series" Gauge One []
        "Series with a value in the last round.";
    AGENT_SERIES_REFUSED "muster_agent_series_refused_total" Counter One []
        "Values left out because a bound on series, families or label length was reached.";
    AGENT_FRAMES_PRODUCED "muster_agent_frames_produced_total" Counter One []
        "Frames numbered since the agent started.";
    AGENT_FRAMES_LOST "muster_agent_frames_lost_total" Counter One ["reason"]
        "Frames given up before they were acknowledged as durable.";
    AGENT_FRAMES_QUEUED "muster_agent_frames_queued" Gauge One []
        "Frames held because they are not yet acknowledged as durable.";
    AGENT_SPOOL_BYTES "muster_agent_spool_bytes" Gauge One []
        "Size of the agent's spool on disk.";
    AGENT_SPOOL_FRAMES "muster_agent_spool_frames" Gauge One []
        "Frames on disk that are not yet acknowledged as durable, of this run of the agent and earlier ones.";
    AGENT_SPOOL_FAILURES "muster_agent_spool_failures_total" Counter One []
        "Failures of the spool's disk since the agent started.";
    AGENT_SPOOL_DROPPED "muster_agent_spool_dropped_frames_total" Counter One ["reason"]
        "Frames of earlier runs of the agent dropped from the spool: full, age, corrupt.";
    AGENT_RECONNECTS "muster_agent_reconnects_total" Counter One []
        "Connections made to an aggregator after the first.";

    // checks
    CHECK_INFO "muster_check_info" Gauge One ["check" "severity" "type"]
        "A check that the host's configuration defines, in labels.";
    CHECK_STATUS "muster_check_status" Gauge One ["check"]
        "Result of the check after its retries: 0 ok, 1 warning, 2 critical, 3 unknown.";
    CHECK_SINCE "muster_check_status_since_timestamp_seconds" Gauge One ["check"]
        "When the check took its present status, in seconds since 1970.";
    CHECK_RESULT "muster_check_result" Gauge One ["check" "result"]
        "1 for what the latest run of the check found: ok, timeout, refused and so on; one series a check.";
    CHECK_DURATION "muster_check_duration_seconds" Gauge Micro ["check"]
        "Time the latest run of the check took.";
    CHECK_RUNS "muster_check_runs_total" Counter One ["check"]
        "Runs of the check since the agent started.";
    CHECK_FAILED_RUNS "muster_check_failed_runs" Gauge One ["check"]
        "Runs in a row that were not ok, retries included.";
    CHECK_CERTIFICATE_EXPIRY "muster_check_certificate_expiry_timestamp_seconds" Gauge One ["check"]
        "When the certificate that the check saw expires, in seconds since 1970.";
    CHECK_PERFDATA "muster_check_perfdata" Untyped Float ["check" "label" "unit"]
        "What a monitoring plugin measured, in base units; unit is seconds, bytes, percent, count or empty.";
}

/// Families of `/proc/meminfo` that get a help text of their own: (name, sentence).
const MEMORY: &[(&str, &str)] = &[
    ("node_memory_MemTotal_bytes", "Usable RAM."),
    ("node_memory_MemFree_bytes", "RAM that nothing uses."),
    (
        "node_memory_MemAvailable_bytes",
        "RAM that new work could get without swapping, as the kernel estimates it.",
    ),
    ("node_memory_Buffers_bytes", "Buffers of block devices."),
    (
        "node_memory_Cached_bytes",
        "Page cache, shared memory included.",
    ),
    ("node_memory_SwapTotal_bytes", "Swap space in all."),
    ("node_memory_SwapFree_bytes", "Swap space that is unused."),
    (
        "node_memory_Slab_bytes",
        "Caches of the kernel's own objects.",
    ),
    (
        "node_memory_Dirty_bytes",
        "Pages that wait to be written to a disk.",
    ),
];

/// The catalogue's families as the codec wants them, in the order of their [`FamilyId`]s.
#[must_use]
pub fn families() -> Vec<Family> {
    METRICS
        .iter()
        .map(|metric| Family {
            name: metric.name.to_owned(),
            kind: metric.kind,
            scale: metric.scale,
            labels: metric
                .labels
                .iter()
                .map(|&label| label.to_owned())
                .collect(),
        })
        .collect()
}

/// node_exporter's name for a line of `/proc/meminfo`: brackets become underscores, and lines with a
/// unit end in `_bytes`. `None` where the result would be no metric name.
#[must_use]
pub fn memory_name(field: &str, has_unit: bool) -> Option<String> {
    let field = field.replace('(', "_").replace(')', "");
    let suffix = if has_unit { "_bytes" } else { "" };
    let name = format!("node_memory_{field}{suffix}");
    crate::series::is_metric_name(&name).then_some(name)
}

/// What a family means, for `# HELP`. Families of a newer agent get a sentence that says so.
#[must_use]
pub fn help(name: &str) -> &'static str {
    let listed = METRICS.iter().find(|metric| metric.name == name);
    let memory = || MEMORY.iter().find(|(known, _)| *known == name);
    match listed {
        Some(metric) => metric.help,
        None => match memory() {
            Some((_, help)) => help,
            None if name.starts_with("node_memory_") => {
                "The line of the same name in /proc/meminfo."
            }
            None => "Not in this aggregator's catalogue; the agent is newer.",
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::series::{is_label_name, is_metric_name};

    #[test]
    fn every_line_is_legal_and_unique() {
        let mut seen = HashSet::new();
        for metric in METRICS {
            assert!(seen.insert(metric.name), "{} twice", metric.name);
            assert!(is_metric_name(metric.name), "{}", metric.name);
            assert!(metric.labels.iter().all(|label| is_label_name(label)));
            assert!(metric.labels.len() <= crate::limits::MAX_LABELS);
            assert!(metric.help.ends_with('.') && !metric.help.contains('\n'));
            let total = metric.name.ends_with("_total");
            assert_eq!(total, metric.kind == Kind::Counter, "{}", metric.name);
        }
        assert_eq!(METRICS[LOAD15.0 as usize].name, "node_load15");
    }

    #[test]
    fn memory_names_are_node_exporters() {
        let name = |field, unit| memory_name(field, unit).expect("legal");
        assert_eq!(name("MemTotal", true), "node_memory_MemTotal_bytes");
        assert_eq!(name("Active(anon)", true), "node_memory_Active_anon_bytes");
        assert_eq!(name("HugePages_Free", false), "node_memory_HugePages_Free");
        assert_eq!(memory_name("odd name\u{7f}", true), None);
    }
}
