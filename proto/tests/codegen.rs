//! The committed Rust of the contract is what the `.proto` files say.
//!
//! Building Muster needs no compiler for `.proto` files, so the generated code is in the repository.
//! `UPDATE_EXPECT=1 cargo test -p muster-proto --test codegen` writes it anew.

use std::{env, fs, path::Path};

const FILES: &[&str] = &[
    "muster/v1/uplink.proto",
    "muster/v1/enrolment.proto",
    "muster/v1/operator.proto",
    "muster/v1/identity.proto",
    "muster/v1/checks.proto",
    "muster/v1/events.proto",
    "muster/v1/paging.proto",
    "muster/v1/replay.proto",
    "muster/v1/history.proto",
    "muster/v1/past.proto",
];

#[test]
fn generated_code_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let descriptors = protox::compile(FILES, [root]).expect("the contract compiles");
    let out = tempfile::tempdir().expect("temporary folder");
    tonic_prost_build::configure()
        .build_transport(false)
        .server_mod_attribute(".", "#[cfg(feature = \"server\")]")
        .btree_map(".")
        .out_dir(out.path())
        .compile_fds(descriptors)
        .expect("code is generated");
    let fresh = fs::read_to_string(out.path().join("muster.v1.rs")).expect("generated file");
    let committed_path = root.join("gen/muster.v1.rs");
    if env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(&committed_path, &fresh).expect("write generated code");
        return;
    }
    let committed = fs::read_to_string(&committed_path).unwrap_or_default();
    assert!(
        committed == fresh,
        "proto/gen/muster.v1.rs is not what proto/muster/v1/*.proto generate; run\n  \
         UPDATE_EXPECT=1 cargo test -p muster-proto --test codegen"
    );
}
