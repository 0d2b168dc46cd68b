//! Only tests and benches: see `Cargo.toml`.
