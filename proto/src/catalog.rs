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
    OS_REBOOT_WANTED "muster_host_reboot_required_since_seconds" Gauge One []
        "Since when the package manager wants a reboot, in seconds since 1970; 0 while it wants none. Of Debian, Ubuntu and their kin.";
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

    // softnet
    SOFTNET_PROCESSED "node_softnet_processed_total" Counter One ["cpu"]
        "Packets this CPU has handled.";
    SOFTNET_DROPPED "node_softnet_dropped_total" Counter One ["cpu"]
        "Packets dropped because this CPU's backlog was full.";
    SOFTNET_TIMES_SQUEEZED "node_softnet_times_squeezed_total" Counter One ["cpu"]
        "Times this CPU had used up its budget and packets were left.";
    SOFTNET_CPU_COLLISION "node_softnet_cpu_collision_total" Counter One ["cpu"]
        "Times this CPU found a device's transmit lock taken.";
    SOFTNET_RECEIVED_RPS "node_softnet_received_rps_total" Counter One ["cpu"]
        "Times this CPU was woken by another to handle packets.";
    SOFTNET_FLOW_LIMIT "node_softnet_flow_limit_count_total" Counter One ["cpu"]
        "Times the limit of a flow was reached on this CPU.";
    SOFTNET_BACKLOG "node_softnet_backlog_len" Gauge One ["cpu"]
        "Packets that wait in this CPU's backlog.";

    // conntrack
    CONNTRACK_ENTRIES "node_nf_conntrack_entries" Gauge One []
        "Connections that are tracked.";
    CONNTRACK_LIMIT "node_nf_conntrack_entries_limit" Gauge One []
        "Most connections that can be tracked.";
    CONNTRACK_FOUND "node_nf_conntrack_stat_found" Gauge One []
        "Look-ups of tracked connections that found one.";
    CONNTRACK_INVALID "node_nf_conntrack_stat_invalid" Gauge One []
        "Packets that could not be tracked.";
    CONNTRACK_IGNORE "node_nf_conntrack_stat_ignore" Gauge One []
        "Packets of connections that were already tracked.";
    CONNTRACK_INSERT "node_nf_conntrack_stat_insert" Gauge One []
        "Connections put into the table.";
    CONNTRACK_INSERT_FAILED "node_nf_conntrack_stat_insert_failed" Gauge One []
        "Connections that could not be put into the table.";
    CONNTRACK_DROP "node_nf_conntrack_stat_drop" Gauge One []
        "Packets dropped because their connection could not be tracked.";
    CONNTRACK_EARLY_DROP "node_nf_conntrack_stat_early_drop" Gauge One []
        "Tracked connections dropped to make room for new ones.";
    CONNTRACK_SEARCH_RESTART "node_nf_conntrack_stat_search_restart" Gauge One []
        "Look-ups begun again because the table was resized.";

    // arp, entropy, udp_queues, tcpstat
    ARP_ENTRIES "node_arp_entries" Gauge One ["device"]
        "Neighbours of the device in the ARP table.";
    ENTROPY_AVAILABLE "node_entropy_available_bits" Gauge One []
        "Entropy in the kernel's pool, in bits.";
    ENTROPY_POOL_SIZE "node_entropy_pool_size_bits" Gauge One []
        "Size of the kernel's entropy pool, in bits.";
    UDP_QUEUES "node_udp_queues" Gauge One ["queue" "ip"]
        "Bytes that wait in the queues of UDP sockets.";
    TCP_STATES "node_tcp_connection_states" Gauge One ["state"]
        "TCP sockets in each state, and the bytes that wait in their queues.";

    // schedstat
    SCHEDSTAT_RUNNING "node_schedstat_running_seconds_total" Counter Nano ["cpu"]
        "Time in which this CPU ran tasks.";
    SCHEDSTAT_WAITING "node_schedstat_waiting_seconds_total" Counter Nano ["cpu"]
        "Time tasks waited for this CPU, summed over tasks.";
    SCHEDSTAT_TIMESLICES "node_schedstat_timeslices_total" Counter One ["cpu"]
        "Time slices run on this CPU.";

    // processes
    PROCESSES_STATE "node_processes_state" Gauge One ["state"]
        "Processes in each state, in the letters of proc_pid_stat(5).";
    PROCESSES_PIDS "node_processes_pids" Gauge One []
        "Processes.";
    PROCESSES_MAX "node_processes_max_processes" Gauge One []
        "Most process ids there can be.";
    PROCESSES_THREADS "node_processes_threads" Gauge One []
        "Threads of all processes.";
    PROCESSES_MAX_THREADS "node_processes_max_threads" Gauge One []
        "Most threads there can be.";

    // timex
    TIMEX_OFFSET "node_timex_offset_seconds" Gauge Nano []
        "Offset between the clock and what it is set by.";
    TIMEX_FREQUENCY "node_timex_frequency_adjustment_ratio" Gauge Float []
        "By how much the clock's speed is corrected; 1 is not at all.";
    TIMEX_MAXERROR "node_timex_maxerror_seconds" Gauge Micro []
        "Most the clock may be wrong; 16 when it is not synchronised.";
    TIMEX_ESTERROR "node_timex_estimated_error_seconds" Gauge Micro []
        "By how much the clock is probably wrong.";
    TIMEX_STATUS "node_timex_status" Gauge One []
        "Status bits of adjtimex(2).";
    TIMEX_LOOP_TIME_CONSTANT "node_timex_loop_time_constant" Gauge One []
        "Time constant of the kernel's phase-locked loop.";
    TIMEX_TICK "node_timex_tick_seconds" Gauge Micro []
        "Seconds between clock ticks.";
    TIMEX_PPS_FREQUENCY "node_timex_pps_frequency_hertz" Gauge Float []
        "Frequency of the pulse-per-second signal.";
    TIMEX_PPS_JITTER "node_timex_pps_jitter_seconds" Gauge Nano []
        "Jitter of the pulse-per-second signal.";
    TIMEX_PPS_SHIFT "node_timex_pps_shift_seconds" Gauge One []
        "Interval over which the pulse-per-second signal is calibrated.";
    TIMEX_PPS_STABILITY "node_timex_pps_stability_hertz" Gauge Float []
        "Stability of the pulse-per-second signal.";
    TIMEX_PPS_JITTERS "node_timex_pps_jitter_total" Counter One []
        "Pulses whose jitter was too great.";
    TIMEX_PPS_CALIBRATIONS "node_timex_pps_calibration_total" Counter One []
        "Calibrations by the pulse-per-second signal.";
    TIMEX_PPS_ERRORS "node_timex_pps_error_total" Counter One []
        "Calibrations by the pulse-per-second signal that failed.";
    TIMEX_PPS_STABILITY_EXCEEDED "node_timex_pps_stability_exceeded_total" Counter One []
        "Calibrations at which the pulse-per-second signal was not stable.";
    TIMEX_TAI_OFFSET "node_timex_tai_offset_seconds" Gauge One []
        "Offset of international atomic time from UTC, if the clock has been told.";
    TIMEX_SYNC_STATUS "node_timex_sync_status" Gauge One []
        "1 when the clock is synchronised with a reliable server.";

    // clock source and time zone
    CLOCKSOURCE_AVAILABLE "node_time_clocksource_available_info" Gauge One ["device" "clocksource"]
        "A clock source the kernel could use, in labels.";
    CLOCKSOURCE_CURRENT "node_time_clocksource_current_info" Gauge One ["device" "clocksource"]
        "The clock source the kernel uses, in labels.";
    TIME_ZONE_OFFSET "node_time_zone_offset_seconds" Gauge One ["time_zone"]
        "Offset of the host's time zone from UTC.";

    // netclass
    NETWORK_INFO "node_network_info" Gauge One ["device" "address" "broadcast" "duplex" "operstate" "adminstate" "ifalias"]
        "Properties of the interface, in labels.";
    NETWORK_UP "node_network_up" Gauge One ["device"]
        "1 when the interface's operstate is up.";
    NETWORK_ADDRESS_ASSIGN_TYPE "node_network_address_assign_type" Gauge One ["device"]
        "How the interface got its address: 0 permanent, 1 random, 2 stolen, 3 set.";
    NETWORK_CARRIER "node_network_carrier" Gauge One ["device"]
        "1 when the interface has a carrier.";
    NETWORK_CARRIER_CHANGES "node_network_carrier_changes_total" Counter One ["device"]
        "Times the carrier came or went.";
    NETWORK_CARRIER_UP_CHANGES "node_network_carrier_up_changes_total" Counter One ["device"]
        "Times the carrier came.";
    NETWORK_CARRIER_DOWN_CHANGES "node_network_carrier_down_changes_total" Counter One ["device"]
        "Times the carrier went.";
    NETWORK_DEVICE_ID "node_network_device_id" Gauge One ["device"]
        "Number that tells interfaces of one piece of hardware apart.";
    NETWORK_DORMANT "node_network_dormant" Gauge One ["device"]
        "1 when the interface waits for something outside before it can be used.";
    NETWORK_FLAGS "node_network_flags" Gauge One ["device"]
        "Flags of the interface, as in netdevice(7).";
    NETWORK_IFACE_ID "node_network_iface_id" Gauge One ["device"]
        "Number of the interface.";
    NETWORK_IFACE_LINK "node_network_iface_link" Gauge One ["device"]
        "Number of the interface this one is on top of.";
    NETWORK_IFACE_LINK_MODE "node_network_iface_link_mode" Gauge One ["device"]
        "Link mode of the interface: 0 default, 1 dormant.";
    NETWORK_MTU "node_network_mtu_bytes" Gauge One ["device"]
        "Largest packet the interface sends.";
    NETWORK_NAME_ASSIGN_TYPE "node_network_name_assign_type" Gauge One ["device"]
        "How the interface got its name.";
    NETWORK_NET_DEV_GROUP "node_network_net_dev_group" Gauge One ["device"]
        "Group of the interface.";
    NETWORK_SPEED "node_network_speed_bytes" Gauge One ["device"]
        "Speed of the link, in bytes per second.";
    NETWORK_TRANSMIT_QUEUE_LENGTH "node_network_transmit_queue_length" Gauge One ["device"]
        "Most packets that wait to be sent.";
    NETWORK_PROTOCOL_TYPE "node_network_protocol_type" Gauge One ["device"]
        "Kind of the interface, a number of if_arp.h.";
    NETWORK_RECEIVE_NOHANDLER "node_network_receive_nohandler_total" Counter One ["device"]
        "Received packets dropped because nothing handles their kind.";

    // bonding
    BONDING_SLAVES "node_bonding_slaves" Gauge One ["master"]
        "Links that belong to the bond.";
    BONDING_ACTIVE "node_bonding_active" Gauge One ["master"]
        "Links of the bond that are up.";

    // cpuinfo and cpufreq
    CPU_INFO "node_cpu_info" Gauge One ["package" "core" "cpu" "vendor" "family" "model" "model_name" "microcode" "stepping" "cachesize"]
        "The processor, in labels.";
    CPU_CORE_THROTTLES "node_cpu_core_throttles_total" Counter One ["core" "package"]
        "Times the core was throttled because it was hot.";
    CPU_PACKAGE_THROTTLES "node_cpu_package_throttles_total" Counter One ["package"]
        "Times the processor was throttled because it was hot.";
    CPU_ISOLATED "node_cpu_isolated" Gauge One ["cpu"]
        "1 when the scheduler leaves this CPU alone.";
    CPU_ONLINE "node_cpu_online" Gauge One ["cpu"]
        "1 when this CPU is in use.";
    CPU_FREQUENCY "node_cpu_frequency_hertz" Gauge One ["cpu"]
        "Frequency at which this CPU runs, as the hardware says.";
    CPU_FREQUENCY_MIN "node_cpu_frequency_min_hertz" Gauge One ["cpu"]
        "Lowest frequency at which this CPU can run.";
    CPU_FREQUENCY_MAX "node_cpu_frequency_max_hertz" Gauge One ["cpu"]
        "Highest frequency at which this CPU can run.";
    CPU_SCALING_FREQUENCY "node_cpu_scaling_frequency_hertz" Gauge One ["cpu"]
        "Frequency that was chosen for this CPU.";
    CPU_SCALING_FREQUENCY_MIN "node_cpu_scaling_frequency_min_hertz" Gauge One ["cpu"]
        "Lowest frequency that may be chosen for this CPU.";
    CPU_SCALING_FREQUENCY_MAX "node_cpu_scaling_frequency_max_hertz" Gauge One ["cpu"]
        "Highest frequency that may be chosen for this CPU.";
    CPU_SCALING_GOVERNOR "node_cpu_scaling_governor" Gauge One ["cpu" "governor"]
        "1 for the governor that chooses this CPU's frequency, 0 for the others there are.";

    // disk and filesystem properties
    DISK_INFO "node_disk_info" Gauge One ["device" "major" "minor" "path" "wwn" "model" "serial" "revision" "rotational"]
        "The disk, in labels.";
    DISK_DEVICE_MAPPER_INFO "node_disk_device_mapper_info" Gauge One ["device" "name" "uuid" "vg_name" "lv_name" "lv_layer"]
        "The device mapper's device, in labels.";
    DISK_FILESYSTEM_INFO "node_disk_filesystem_info" Gauge One ["device" "type" "usage" "uuid" "version"]
        "The filesystem on the disk, in labels.";
    DISK_ATA_WRITE_CACHE "node_disk_ata_write_cache" Gauge One ["device"]
        "1 when the ATA disk has a write cache.";
    DISK_ATA_WRITE_CACHE_ENABLED "node_disk_ata_write_cache_enabled" Gauge One ["device"]
        "1 when the ATA disk's write cache is on.";
    DISK_ATA_ROTATION_RATE "node_disk_ata_rotation_rate_rpm" Gauge One ["device"]
        "Revolutions a minute of the ATA disk; 0 for one that does not turn.";
    FILESYSTEM_MOUNT_INFO "node_filesystem_mount_info" Gauge One ["device" "major" "minor" "mountpoint"]
        "Device numbers of the filesystem, in labels.";

    // mdadm
    MD_DISKS "node_md_disks" Gauge One ["device" "state"]
        "Members of the array in each state.";
    MD_DISKS_REQUIRED "node_md_disks_required" Gauge One ["device"]
        "Members the array should have.";
    MD_STATE "node_md_state" Gauge One ["device" "state"]
        "1 for the state the array is in, 0 for the others.";
    MD_BLOCKS "node_md_blocks" Gauge One ["device"]
        "Blocks of the array.";
    MD_BLOCKS_SYNCED "node_md_blocks_synced" Gauge One ["device"]
        "Blocks of the array that are in sync.";

    // edac
    EDAC_CORRECTABLE "node_edac_correctable_errors_total" Counter One ["controller"]
        "Memory errors that were corrected.";
    EDAC_UNCORRECTABLE "node_edac_uncorrectable_errors_total" Counter One ["controller"]
        "Memory errors that could not be corrected.";
    EDAC_CSROW_CORRECTABLE "node_edac_csrow_correctable_errors_total" Counter One ["controller" "csrow"]
        "Memory errors that were corrected, by row of chips.";
    EDAC_CSROW_UNCORRECTABLE "node_edac_csrow_uncorrectable_errors_total" Counter One ["controller" "csrow"]
        "Memory errors that could not be corrected, by row of chips.";

    // hwmon, thermal zones, power
    HWMON_CHIP_NAMES "node_hwmon_chip_names" Gauge One ["chip" "chip_name"]
        "Readable name of a chip with sensors, in a label.";
    HWMON_SENSOR_LABEL "node_hwmon_sensor_label" Gauge One ["chip" "sensor" "label"]
        "Readable name of a sensor, in a label.";
    THERMAL_ZONE_TEMP "node_thermal_zone_temp" Gauge Milli ["zone" "type"]
        "Temperature of the zone, in degrees Celsius.";
    COOLING_DEVICE_CURRENT "node_cooling_device_cur_state" Gauge One ["name" "type"]
        "How hard the device cools.";
    COOLING_DEVICE_MAX "node_cooling_device_max_state" Gauge One ["name" "type"]
        "How hard the device can cool.";

    // watchdog, selinux, nvme
    WATCHDOG_INFO "node_watchdog_info" Gauge One ["name" "options" "identity" "state" "status" "pretimeout_governor"]
        "The watchdog, in labels.";
    WATCHDOG_AVAILABLE "node_watchdog_available" Gauge One ["name" "device"]
        "1 for the governors of the pre-timeout that there are.";
    WATCHDOG_BOOTSTATUS "node_watchdog_bootstatus" Gauge One ["name"]
        "Status of the watchdog at boot.";
    WATCHDOG_FW_VERSION "node_watchdog_fw_version" Gauge One ["name"]
        "Firmware version of the watchdog.";
    WATCHDOG_NOWAYOUT "node_watchdog_nowayout" Gauge One ["name"]
        "1 when the watchdog cannot be stopped.";
    WATCHDOG_TIMELEFT "node_watchdog_timeleft_seconds" Gauge One ["name"]
        "Time until the watchdog resets the machine.";
    WATCHDOG_TIMEOUT "node_watchdog_timeout_seconds" Gauge One ["name"]
        "Time after which the watchdog resets the machine.";
    WATCHDOG_PRETIMEOUT "node_watchdog_pretimeout_seconds" Gauge One ["name"]
        "Time before the reset at which the watchdog warns.";
    WATCHDOG_ACCESS_CS0 "node_watchdog_access_cs0" Gauge One ["name"]
        "1 when the second flash chip was booted from.";
    SELINUX_ENABLED "node_selinux_enabled" Gauge One []
        "1 when SELinux is on.";
    SELINUX_CONFIG_MODE "node_selinux_config_mode" Gauge One []
        "Mode of SELinux in its configuration: 1 enforcing, 0 permissive, -1 disabled.";
    SELINUX_CURRENT_MODE "node_selinux_current_mode" Gauge One []
        "Mode SELinux is in: 1 enforcing, 0 permissive.";
    NVME_INFO "node_nvme_info" Gauge One ["device" "firmware_revision" "model" "serial" "state" "cntlid"]
        "The NVMe controller, in labels.";

    // textfile
    TEXTFILE_MTIME "node_textfile_mtime_seconds" Gauge Milli ["file"]
        "When the text file was last written to, in seconds since 1970.";
    TEXTFILE_SCRAPE_ERROR "node_textfile_scrape_error" Gauge One []
        "1 when a text file could not be read or understood.";
    TEXTFILE_ERROR "muster_host_textfile_error" Gauge One ["file"]
        "1 when this text file could not be read or understood; its values are absent.";
    TEXTFILE_STALE "muster_host_textfile_stale" Gauge One ["file"]
        "1 when this text file has not been written to for longer than the configuration allows.";

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
    SYSTEMD_TIMER_LAST "node_systemd_timer_last_trigger_seconds" Gauge Micro ["name"]
        "When the timer was last triggered, in seconds since 1970; 0 for never.";
    SYSTEMD_TIMER_NEXT "muster_host_systemd_timer_next_trigger_seconds" Gauge Micro ["name"]
        "When the timer is to be triggered next, in seconds since 1970.";
    SYSTEMD_SOCKET_ACCEPTED "node_systemd_socket_accepted_connections_total" Counter One ["name"]
        "Connections that the socket accepted; systemd counts those of sockets with Accept=yes.";
    SYSTEMD_SOCKET_CURRENT "node_systemd_socket_current_connections" Gauge One ["name"]
        "Connections of the socket that are open.";
    SYSTEMD_SOCKET_REFUSED "node_systemd_socket_refused_connections_total" Counter One ["name"]
        "Connections that the socket refused because there were too many.";
    SYSTEMD_UNIT_RESULT "muster_host_systemd_unit_result" Gauge One ["name" "result"]
        "1 with the reason why the service last failed: exit-code, signal, timeout, oom-kill, watchdog, start-limit-hit and so on.";
    SYSTEMD_UNIT_EXIT "muster_host_systemd_unit_exit_status" Gauge One ["name"]
        "Exit status of the main process of a service that failed, or the signal that ended it.";
    SYSTEMD_RECENT_RESTARTS "muster_host_systemd_unit_restarts_recent" Gauge One ["name"]
        "Automatic restarts of the service in the last 10 minutes; absent without any.";
    SYSTEMD_UNIT_MEMORY "muster_host_systemd_unit_memory_bytes" Gauge One ["name"]
        "Memory of the service and all below it, as its cgroup accounts for it, page cache included.";
    SYSTEMD_UNIT_CPU "muster_host_systemd_unit_cpu_seconds_total" Counter Micro ["name"]
        "Processor time of the service and all below it, as its cgroup accounts for it.";
    SYSTEMD_UNITS_UNOBSERVED "muster_host_systemd_units_unobserved" Gauge One []
        "Units that match the patterns but are beyond the bound on their number.";

    // the pass itself
    SCRAPE_COLLECTOR_DURATION "node_scrape_collector_duration_seconds" Gauge Nano ["collector"]
        "Time the collector took in its last round.";
    SCRAPE_COLLECTOR_SUCCESS "node_scrape_collector_success" Gauge One ["collector"]
        "1 when the collector read all it should in its last round.";
    AGENT_COLLECTOR_ABSENT "muster_agent_collector_absent" Gauge One ["collector"]
        "1 while the host does not have what the collector reads: it has no values, and that is no failure.";
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

/// Families whose names the kernel or its drivers make: (beginning of the name, sentence).
const MADE: &[(&str, &str)] = &[
    (
        "node_memory_",
        "The line of the same name in /proc/meminfo.",
    ),
    (
        "node_netstat_",
        "The field of the same name in /proc/net/netstat, snmp or snmp6.",
    ),
    (
        "node_sockstat_",
        "The field of the same name in /proc/net/sockstat or sockstat6.",
    ),
    (
        "node_hwmon_",
        "A sensor's file of the same name in /sys/class/hwmon.",
    ),
    (
        "node_power_supply_",
        "The file of the same name in /sys/class/power_supply.",
    ),
    ("node_rapl_", "Energy this part of the processor has used."),
    (
        "node_zfs_",
        "The field of the same name in /proc/spl/kstat/zfs.",
    ),
    ("node_xfs_", "A figure of /sys/fs/xfs/<device>/stats/stats."),
    ("node_btrfs_", "A figure of /sys/fs/btrfs/<uuid>."),
    ("node_bcache_", "A figure of /sys/fs/bcache/<uuid>."),
    ("node_nfs_", "A figure of /proc/net/rpc/nfs."),
    ("node_nfsd_", "A figure of /proc/net/rpc/nfsd."),
    ("node_ipvs_", "A figure of /proc/net/ip_vs or ip_vs_stats."),
    (
        "node_infiniband_",
        "The counter of the same name in /sys/class/infiniband.",
    ),
    (
        "node_fibrechannel_",
        "The counter of the same name in /sys/class/fc_host.",
    ),
    (
        "node_tape_",
        "A figure of /sys/class/scsi_tape/<device>/stats.",
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
            None => match MADE.iter().find(|(prefix, _)| name.starts_with(prefix)) {
                Some((_, help)) => help,
                None => "From a text file of the host, or from an agent newer than this program.",
            },
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
