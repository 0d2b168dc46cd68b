//! The examples as programs.

use std::env;
use std::path::PathBuf;
use std::process::{Command, Output};

use flash_alibi_models::Backend;
use serde_json::Value;

use crate::encoder::jina;
use crate::{folder, greedy_golden};

/// Runs an example. `cargo test` builds it before the tests run; `cargo test --test models` does not, and then the one from
/// before is run, or the test fails and says what builds it.
fn run(example: &str, arguments: &[&str]) -> Output {
    let tests = env::current_exe().unwrap();
    let examples = tests.ancestors().nth(2).unwrap().join("examples");
    let program: PathBuf = examples
        .join(example)
        .with_extension(env::consts::EXE_EXTENSION);
    assert!(
        program.exists(),
        "there is no {}: build it by `cargo build --examples`",
        program.display()
    );
    let mut command = Command::new(program);
    command.args(arguments).env("RUST_BACKTRACE", "0");
    command.env_remove("RUST_LIB_BACKTRACE").output().unwrap()
}

/// Where there is no GPU, one line says so.
#[test]
fn examples_without_a_gpu_end_with_one_clear_line() {
    #[cfg(feature = "cuda")]
    let expected = match flash_alibi::cuda::context(0) {
        Ok(_) => return,
        Err(error) => error.to_string(),
    };
    #[cfg(not(feature = "cuda"))]
    let expected =
        "this program was built without candle's CUDA path: build it with `--features candle-cuda`";
    let error = Backend::Cuda.device().unwrap_err();
    assert_eq!(error.to_string(), expected);
    for example in ["generate", "extrapolate", "serve_trace"] {
        let output = run(example, &["--device", "cuda"]);
        assert_eq!(output.status.code(), Some(1), "{example}");
        assert_eq!(
            String::from_utf8_lossy(&output.stderr),
            format!("Error: {expected}\n")
        );
        assert!(output.stdout.is_empty(), "{example}");
    }
}

#[test]
fn generate_prints_one_line_of_json() {
    for name in ["tiny-bloom", "tiny-falcon-rw", "tiny-falcon-mqa"] {
        let (prompt, golden) = greedy_golden(name);
        let case = if name == "tiny-bloom" {
            "untied"
        } else {
            "tied"
        };
        let model = folder(name);
        let arguments = [
            "--json",
            "--tokens",
            "24",
            "--prompt",
            &prompt,
            "--model",
            model.to_str().unwrap(),
        ];
        let output = run("generate", &arguments);
        assert!(output.status.success(), "{output:?}");
        let out = String::from_utf8(output.stdout).unwrap();
        assert_eq!(out.lines().count(), 1, "{out}");
        let line: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(line["prompt_tokens"], prompt.len(), "{line}");
        assert_eq!(line["tokens"], golden[case], "{line}");
        assert!(
            line["text"].as_str().unwrap().starts_with(&prompt),
            "{line}"
        );
        for seconds in ["prefill_seconds", "decode_seconds"] {
            assert!(line[seconds].as_f64().unwrap() > 0.0, "{line}");
        }
    }
}

#[test]
fn generate_draws_the_same_text_for_the_same_seed() {
    let text = |seed: &str| {
        let arguments = [
            "--quiet",
            "--tokens",
            "40",
            "--temperature",
            "1.5",
            "--top-p",
            "0.95",
        ];
        let output = run("generate", &[&arguments[..], &["--seed", seed]].concat());
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    let first = text("1");
    assert_eq!(text("1"), first);
    assert_ne!(text("2"), first);
}

#[test]
fn embed_prints_cosines_and_one_line_of_json() {
    let model = jina(4, 16).write();
    let model = model.to_str().unwrap();
    let texts = ["sunrise", "sunset", "sunrise"];
    let output = run("embed", &[&["--model", model][..], &texts].concat());
    assert!(output.status.success(), "{output:?}");
    let table = String::from_utf8(output.stdout).unwrap();
    assert_eq!(table.lines().count(), 3, "{table}");
    for (line, text) in table.lines().zip(texts) {
        assert!(line.ends_with(text) && line.contains(" 1.000 "), "{table}");
    }

    let arguments = ["--json", "--normalise", "--model", model];
    let output = run("embed", &[&arguments[..], &texts].concat());
    let out = String::from_utf8(output.stdout).unwrap();
    assert_eq!(out.lines().count(), 1, "{out}");
    let line: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(line["tokens"], serde_json::json!([7, 6, 7]), "{line}");
    assert_eq!(line["embeddings"][0], line["embeddings"][2]);
    assert_ne!(line["embeddings"][0], line["embeddings"][1]);
    let squares = line["embeddings"][0].as_array().unwrap().iter();
    let length: f64 = squares.map(|x| x.as_f64().unwrap().powi(2)).sum();
    assert!((length - 1.0).abs() < 1e-5, "{length}");
    let cosine = line["cosines"][0][1].as_f64().unwrap();
    assert!(cosine < 0.9999, "{cosine}");
}

#[test]
fn embed_says_what_it_needs() {
    let error = |arguments: &[&str]| {
        let output = run("embed", arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert_eq!(output.stdout, b"", "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let found = error(&["text"]);
    assert_eq!(found.lines().count(), 1, "{found}");
    let download = "`hf download jinaai/jina-embeddings-v2-small-en --local-dir jina`";
    assert!(found.contains(download), "{found}");
    let model = jina(4, 16).write();
    let found = error(&["--model", model.to_str().unwrap()]);
    assert!(found.contains("found no texts"), "{found}");
}
