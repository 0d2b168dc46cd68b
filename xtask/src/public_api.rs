//! The listing of the crate's public interface, `public-api.txt`: what a change of it breaks or adds is seen in review.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use rustdoc_types::FORMAT_VERSION;

use crate::toolkit::target;

const LISTING: &str = "public-api.txt";

/// Compares the listing with the interface, or writes it anew.
pub fn check(bless: bool) -> Result<(), String> {
    // rustdoc writes JSON only for those who allow what may change; the library says which form it reads.
    crate::cargo_with(
        &[
            "rustdoc",
            "--package=flash-alibi",
            "--lib",
            "--features=candle,cuda",
            "--",
            "-Zunstable-options",
            "--output-format=json",
        ],
        &[("DOCS_RS", "1".as_ref()), ("RUSTC_BOOTSTRAP", "1".as_ref())],
    )?;
    let json = target().join("doc/flash_alibi.json");
    let text = fs::read_to_string(&json).map_err(|error| format!("{}: {error}", json.display()))?;
    let found: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| format!("{}: {error}", json.display()))?;
    if found["format_version"] != FORMAT_VERSION {
        println!(
            "SKIPPED: {LISTING} is not compared: this rustdoc writes form {}, and the library here reads form \
             {FORMAT_VERSION}, that of Rust 1.95",
            found["format_version"]
        );
        return Ok(());
    }
    let items = public_api::Builder::from_rustdoc_json(&json)
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .omit_auto_derived_impls(true)
        .build()
        .map_err(|error| error.to_string())?;
    let items: String = items.items().map(|item| format!("{item}\n")).collect();
    let listing = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(LISTING);
    if bless {
        return fs::write(&listing, items).map_err(|error| format!("{LISTING}: {error}"));
    }
    let listed = fs::read_to_string(&listing).map_err(|error| format!("{LISTING}: {error}"))?;
    if listed == items {
        return Ok(());
    }
    let without = |all: &str, others: &str, sign: char| -> String {
        let others: HashSet<&str> = others.lines().collect();
        let lines = all.lines().filter(|line| !others.contains(line));
        lines.map(|line| format!("{sign} {line}\n")).collect()
    };
    Err(format!(
        "the public interface is not that of {LISTING}; if the change is meant, `cargo xtask public-api` writes it anew:\n{}{}",
        without(&listed, &items, '-'),
        without(&items, &listed, '+')
    ))
}
