//! What golden files may say.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::*;

/// The content of a file that comes with the crate, after `edit` has seen its description and its tensors.
fn edited(name: &str, edit: impl FnOnce(&mut Value, &mut Value)) -> (PathBuf, Vec<u8>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    let path = path.join(name).with_extension("safetensors");
    let bytes = fs::read(&path).unwrap();
    let (len, rest) = bytes.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*len) as usize);
    let mut header: Value = serde_json::from_slice(header).unwrap();
    let case = header["__metadata__"]["case"].as_str().unwrap();
    let mut case = serde_json::from_str(case).unwrap();
    edit(&mut case, &mut header);
    header["__metadata__"]["case"] = case.to_string().into();
    let header = header.to_string();
    let len = (header.len() as u64).to_le_bytes();
    (path, [&len[..], header.as_bytes(), data].concat())
}

/// The golden, or all that is said of why there is none.
fn parse((path, bytes): (PathBuf, Vec<u8>)) -> std::result::Result<Golden, String> {
    Golden::parse(&bytes, &path).map_err(|error| format!("{error:#}"))
}

#[test]
fn what_is_not_known_of_a_case_is_an_error() {
    let with = |field: &str, value: Value| {
        parse(edited("bidirectional_h12_d64_f16", |case, _| {
            case[field] = value;
        }))
    };
    with("bias", json!("linear")).unwrap();
    with("seed", json!(7)).unwrap();
    for (field, value, expected) in [
        ("causla", json!(false), "unknown field `causla`"),
        (
            "slopes_after",
            json!("steep"),
            "unknown field `slopes_after`",
        ),
        (
            "bias",
            json!("sqrt"),
            "bias: found sqrt, expected linear: not supported",
        ),
        (
            "dtype",
            json!("bf16"),
            "dtype: f16 in the tensors, bf16 in `case`",
        ),
        (
            "heads_q",
            json!(3),
            "heads_q: 12 in the tensors, Some(3) in `case`",
        ),
        (
            "offset",
            json!([3]),
            "offset: None in the tensors, Some([3]) in `case`",
        ),
    ] {
        let error = with(field, value).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_tensor_that_is_not_known_is_an_error() {
    for unknown in ["positions_q", "positions_k", "slopes_after"] {
        let file = edited("bidirectional_h12_d64_f16", |_, tensors| {
            tensors[unknown] = tensors["lse"].take();
            tensors.as_object_mut().unwrap().remove("lse");
        });
        let error = parse(file).unwrap_err();
        let expected =
            format!("found a tensor `{unknown}`, expected only q, k, v, slopes, out, lse,");
        assert!(error.contains(&expected), "{error}");
    }
}
