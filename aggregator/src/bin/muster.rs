//! `muster`: the operator's command line. Everything is in [`muster_aggregator::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    muster_aggregator::cli::main()
}
