//! The kernels' parameters in Rust are what bindgen makes of the header. `UPDATE=1 cargo xtask test` writes them anew.

use std::path::Path;
use std::{env, fs};

#[test]
fn are_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let header = root.join("kernels/common/params.h");
    let file = root.join("src/kernels/params.rs");
    assert!(
        env::var_os("LIBCLANG_PATH").is_some(),
        "this test needs libclang: run it by `cargo xtask test`, or set LIBCLANG_PATH"
    );
    let bindings = bindgen::Builder::default()
        .header(header.display().to_string())
        .clang_args(["-x", "c", "-std=c17"])
        .allowlist_type("AppendParams|AttentionParams|CopyPagesParams|MergeStateParams|TensorStrides")
        .derive_default(true)
        .derive_partialeq(true)
        .layout_tests(true)
        .disable_header_comment()
        .raw_line("//! Generated from kernels/common/params.h; do not edit. `xtask/tests/params.rs` compares.\n#![allow(clippy::all, clippy::undocumented_unsafe_blocks, missing_docs)]\n")
        .formatter(bindgen::Formatter::Prettyplease)
        .generate()
        .expect("the header parses")
        .to_string();
    if env::var_os("UPDATE").is_some() {
        fs::write(&file, &bindings).unwrap();
    }
    let current = fs::read_to_string(&file).unwrap_or_default();
    assert!(
        current == bindings,
        "src/kernels/params.rs is not what kernels/common/params.h says; UPDATE=1 cargo xtask test writes it"
    );
}
