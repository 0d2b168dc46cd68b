//! Real checkpoints through this crate's attention, against what Hugging Face's transformers computes for them in f32.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::{D, Device, IndexOp, Tensor};
use flash_alibi::Horizon;
use flash_alibi_models::Problem;
use flash_alibi_models::measure;
use flash_alibi_models::{Backend, Model, Tokenizer};

fn folder(name: &str) -> PathBuf {
    // Tests run in the package's folder, wherever it is.
    Path::new("models").join(name)
}

fn load(folder: &Path) -> anyhow::Result<Model> {
    Model::load(folder, &Device::Cpu, Horizon::default())
}

/// A folder of this test's own.
fn scratch(name: &str) -> PathBuf {
    let folder = env::temp_dir().join(format!("flash-alibi-{}-{name}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// The golden token ids, one list a sequence, and the golden logits.
fn golden(name: &str) -> (Vec<Vec<u32>>, Tensor) {
    let file = folder(name).join("golden_logits.safetensors");
    let tensors = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    let ids = tensors["input_ids"]
        .to_dtype(candle_core::DType::U32)
        .unwrap();
    (ids.to_vec2().unwrap(), tensors["logits"].clone())
}

/// Feeds the tokens in chunks of the given sizes, then one by one: `[batch, tokens, vocab]`.
fn logits(model: &Model, tokens: &[Vec<u32>], chunks: &[usize]) -> Tensor {
    let (batch, n) = (tokens.len(), tokens[0].len());
    let mut cache = model.cache(batch * n.div_ceil(16), 16).unwrap();
    let sequences: Vec<_> = tokens.iter().map(|_| cache.pages.create()).collect();
    let (mut hidden, mut start) = (Vec::new(), 0);
    for size in chunks.iter().copied().chain(std::iter::repeat(1)) {
        if start == n {
            break;
        }
        let chunk = tokens.iter().map(|t| &t[start..start + size]);
        let chunk: Vec<_> = sequences.iter().copied().zip(chunk).collect();
        let states = model.forward(&chunk, &mut cache).unwrap();
        let width = states.dim(1).unwrap();
        hidden.push(states.reshape((batch, size, width)).unwrap());
        start += size;
    }
    let hidden = Tensor::cat(&hidden, 1).unwrap().flatten(0, 1).unwrap();
    let logits = model.logits(&hidden).unwrap();
    logits.reshape((batch, n, ())).unwrap()
}

fn max_difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let difference = (a - b).unwrap().abs().unwrap();
    difference
        .flatten_all()
        .unwrap()
        .max(D::Minus1)
        .unwrap()
        .to_scalar()
        .unwrap()
}

/// Both sides compute in f32 and sum in different orders: each logit is a sum of hundreds of products after layers of
/// such sums. Measured: 2.3e-5 for logits of up to 20 (BLOOM), so 2e-4 leaves room for other processors; the least
/// error of the bias (one position) moves logits by more than 1e-2.
const LOGIT_TOLERANCE: f32 = 2e-4;

#[test]
fn logits_equal_those_of_transformers() {
    for name in ["kjv-bloom", "random-mpt"] {
        let model = load(&folder(name)).unwrap();
        let (tokens, expected) = golden(name);
        let difference = max_difference(&logits(&model, &tokens, &[tokens[0].len()]), &expected);
        println!("{name}: logits differ by at most {difference:e}");
        assert!(difference <= LOGIT_TOLERANCE, "{name}: {difference}");
    }
}

#[test]
fn a_cache_filled_in_chunks_or_token_by_token_gives_the_same_logits() {
    for name in ["kjv-bloom", "random-mpt"] {
        let model = load(&folder(name)).unwrap();
        let tokens: Vec<Vec<u32>> = golden(name).0.iter().map(|t| t[..150].to_vec()).collect();
        let whole = logits(&model, &tokens, &[150]);
        for chunks in [&[1][..], &[64, 63, 1], &[7, 130]] {
            let difference = max_difference(&logits(&model, &tokens, chunks), &whole);
            assert!(
                difference <= LOGIT_TOLERANCE,
                "{name} in chunks of {chunks:?}: {difference}"
            );
        }
    }
}

#[test]
fn greedy_text_equals_that_of_transformers() {
    let folder = folder("kjv-bloom");
    let (model, tokenizer) = (load(&folder).unwrap(), Tokenizer::load(&folder).unwrap());
    let expected = fs::read_to_string(folder.join("golden_greedy.txt")).unwrap();
    let prompt = "Ge1:1 In the beginning God created";
    let mut cache = model.cache(13, 16).unwrap();
    let sequence = cache.pages.create();
    let (mut text, mut stream) = (prompt.to_owned(), tokenizer.stream());
    let mut tokens = tokenizer.encode(prompt).unwrap();
    for _ in 0..96 {
        let hidden = model.forward(&[(sequence, &tokens)], &mut cache).unwrap();
        tokens = model.greedy(&hidden, &[tokens.len() as u32 - 1]).unwrap();
        text += &stream(tokens[0]).unwrap();
    }
    assert_eq!(text, expected);
}

#[test]
fn bits_per_byte_equal_those_of_transformers_beyond_the_trained_context() {
    let folder = folder("kjv-bloom");
    let model = load(&folder).unwrap();
    let text = fs::read(folder.join("heldout.txt")).unwrap();
    let expected = fs::read_to_string(folder.join("golden_bits_per_byte.json")).unwrap();
    let expected: HashMap<String, f64> = serde_json::from_str(&expected).unwrap();
    for context in [128, 1024] {
        let (mut bits, mut bytes) = (0.0, 0);
        for window in text.chunks_exact(context).take((32768 / context).min(40)) {
            let tokens: Vec<u32> = window.iter().copied().map(u32::from).collect();
            let logits = logits(&model, std::slice::from_ref(&tokens), &[context])
                .i(0)
                .unwrap();
            let logs = candle_nn::ops::log_softmax(&logits, D::Minus1).unwrap();
            let logs: Vec<Vec<f32>> = logs.to_vec2().unwrap();
            for (logs, &next) in logs.iter().zip(&tokens[1..]) {
                bits -= f64::from(logs[next as usize]) / std::f64::consts::LN_2;
                bytes += 1;
            }
        }
        let (found, expected) = (bits / f64::from(bytes), expected[&context.to_string()]);
        assert!(
            (found - expected).abs() < 0.005,
            "{context}: {found}, {expected}"
        );
    }
}

#[test]
fn a_sharded_checkpoint_without_prefix_loads_like_a_whole_one() {
    let from = folder("random-mpt");
    let tensors =
        candle_core::safetensors::load(from.join("model.safetensors"), &Device::Cpu).unwrap();
    let to = scratch("sharded");
    fs::copy(from.join("config.json"), to.join("config.json")).unwrap();
    let mut shards = [HashMap::new(), HashMap::new()];
    let mut map = serde_json::Map::new();
    for (i, (name, tensor)) in tensors.into_iter().enumerate() {
        let name = name.trim_start_matches("transformer.").to_owned();
        map.insert(name.clone(), format!("shard-{}.safetensors", i % 2).into());
        shards[i % 2].insert(name, tensor);
    }
    for (i, shard) in shards.iter().enumerate() {
        candle_core::safetensors::save(shard, to.join(format!("shard-{i}.safetensors"))).unwrap();
    }
    let index = serde_json::json!({ "weight_map": map }).to_string();
    fs::write(to.join("model.safetensors.index.json"), index).unwrap();

    let tokens = [vec![1, 2, 3, 200]];
    let of = |folder: &Path| logits(&load(folder).unwrap(), &tokens, &[4]);
    assert_eq!(max_difference(&of(&to), &of(&from)), 0.0);
}

#[test]
fn a_folder_that_is_no_such_model_is_an_error_that_says_why() {
    let message = |name: &str, change: &dyn Fn(&mut serde_json::Value)| {
        let to = scratch("changed");
        let config = fs::read_to_string(folder(name).join("config.json")).unwrap();
        let mut config = serde_json::from_str(&config).unwrap();
        change(&mut config);
        fs::write(to.join("config.json"), config.to_string()).unwrap();
        fs::copy(
            folder(name).join("model.safetensors"),
            to.join("model.safetensors"),
        )
        .unwrap();
        match load(&to) {
            Ok(_) => panic!("{name} with a bad config.json was loaded"),
            Err(error) => format!("{error:#}"),
        }
    };
    for (name, key, value, expected) in [
        (
            "kjv-bloom",
            "model_type",
            "llama".into(),
            "found model_type llama, expected bloom or mpt",
        ),
        (
            "kjv-bloom",
            "n_head",
            0.into(),
            "found no n_head or num_attention_heads",
        ),
        (
            "kjv-bloom",
            "n_head",
            7.into(),
            "hidden_size = 384 is not a multiple of 7 heads",
        ),
        (
            "kjv-bloom",
            "vocab_size",
            255.into(),
            "shape mismatch for transformer.word_embeddings.weight",
        ),
        (
            "random-mpt",
            "no_bias",
            false.into(),
            "found no_bias = false, expected true",
        ),
        (
            "random-mpt",
            "logit_scale",
            2.into(),
            "found logit_scale = 2, expected null",
        ),
    ] {
        let found = message(name, &|config| {
            config[key] = serde_json::Value::clone(&value)
        });
        assert!(found.contains(expected), "{key}: {found}");
    }
    for (key, value, expected) in [
        (
            "alibi",
            false.into(),
            "found attn_config.alibi = false, expected true",
        ),
        (
            "qk_ln",
            true.into(),
            "found attn_config.qk_ln = true, expected false",
        ),
        (
            "prefix_lm",
            true.into(),
            "found attn_config.prefix_lm = true, expected false",
        ),
        (
            "attn_type",
            "grouped".into(),
            "found attn_config.attn_type = \"grouped\", expected multihead_attention",
        ),
    ] {
        let value: serde_json::Value = value;
        let found = message("random-mpt", &|config| {
            config["attn_config"][key] = value.clone()
        });
        assert!(found.contains(expected), "{key}: {found}");
    }
    let missing = load(Path::new("no/such/folder")).err().unwrap();
    assert!(
        format!("{missing:#}").starts_with("no/such/folder/config.json: "),
        "{missing:#}"
    );
    let model = load(&folder("random-mpt")).unwrap();
    // When the cache is full, no sequence of the step has grown.
    let mut cache = model.cache(2, 8).unwrap();
    let (a, b) = (cache.pages.create(), cache.pages.create());
    let full = model.forward(&[(a, &[1, 2, 3]), (b, &[4; 9])], &mut cache);
    assert_eq!(
        full.unwrap_err().to_string(),
        "cache: found 1 free pages, expected at least 2"
    );
    assert_eq!(
        (cache.pages.len(a).unwrap(), cache.pages.free_pages()),
        (0, 2)
    );
}

#[test]
fn bytes_become_text_as_soon_as_a_character_is_whole() {
    let tokenizer = Tokenizer::load(&folder("kjv-bloom")).unwrap();
    let text = "a\u{e9}\u{4e2d}!";
    let mut stream = tokenizer.stream();
    let pieces: Vec<String> = tokenizer
        .encode(text)
        .unwrap()
        .into_iter()
        .map(|token| stream(token).unwrap())
        .collect();
    assert_eq!(pieces, ["a", "", "\u{e9}", "", "", "\u{4e2d}", "!"]);
    // A byte that continues nothing, and a character that is broken off by another.
    assert_eq!(stream(0xff).unwrap(), "\u{fffd}");
    assert_eq!(
        [stream(0xe4).unwrap(), stream(0x62).unwrap()],
        ["", "\u{fffd}b"]
    );
}

#[test]
fn a_vocabulary_is_read_from_tokenizer_json() {
    let to = scratch("vocabulary");
    let tokenizer = serde_json::json!({
        "version": "1.0",
        "model": { "type": "WordLevel", "vocab": { "light": 0, "there": 1, "be": 2, "?": 3 }, "unk_token": "?" },
        "pre_tokenizer": { "type": "Whitespace" },
    });
    fs::write(to.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let tokenizer = Tokenizer::load(&to).unwrap();
    let tokens = tokenizer.encode("there be light").unwrap();
    assert_eq!(tokens, [1, 2, 0]);
    let mut stream = tokenizer.stream();
    let text: String = tokens.iter().map(|&token| stream(token).unwrap()).collect();
    assert_eq!(text, "there be light");
    assert_eq!(tokenizer.text_len(&tokens).unwrap(), text.len());
}

/// Far beyond where the horizon begins, it changes neither what the model computes nor, in bits, what `Bitwise` promises.
#[test]
fn the_horizon_changes_no_prediction() {
    let tokenizer = Tokenizer::load(&folder("kjv-bloom")).unwrap();
    let text = fs::read_to_string(folder("kjv-bloom").join("heldout.txt")).unwrap();
    let tokens = tokenizer.encode(&text[..4096]).unwrap();
    let hidden = |horizon| {
        let model = Model::load(&folder("kjv-bloom"), &Device::Cpu, horizon).unwrap();
        let mut cache = model.cache(4096 / 16, 16).unwrap();
        let sequence = cache.pages.create();
        let hidden = model.forward(&[(sequence, &tokens)], &mut cache).unwrap();
        let rows: Vec<u32> = (0..4096).collect();
        let next = model.greedy(&hidden, &rows).unwrap();
        (hidden, next)
    };
    let (whole, next) = hidden(Horizon::Off);
    for (horizon, most) in [(Horizon::default(), 1e-4), (Horizon::Bitwise, 0.0)] {
        let (found, found_next) = hidden(horizon);
        assert_eq!(next, found_next);
        let difference = max_difference(&whole, &found);
        assert!(difference <= most, "{horizon:?}: {difference}");
    }
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
    let tests = env::current_exe().unwrap();
    let examples = tests.ancestors().nth(2).unwrap().join("examples");
    for example in ["generate", "extrapolate", "serve_trace"] {
        // `cargo test` builds it; `cargo test --test models` does not.
        let program = examples
            .join(example)
            .with_extension(env::consts::EXE_EXTENSION);
        if !program.exists() {
            let line = format!("skipped: there is no {}\n", program.display());
            std::io::stderr().write_all(line.as_bytes()).unwrap();
            continue;
        }
        let output = Command::new(program)
            .args(["--device", "cuda"])
            .env("RUST_BACKTRACE", "0")
            .env_remove("RUST_LIB_BACKTRACE")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{example}");
        assert_eq!(
            String::from_utf8_lossy(&output.stderr),
            format!("Error: {expected}\n")
        );
        assert!(output.stdout.is_empty(), "{example}");
    }
}

/// Of layers of a model and of what a plain generator makes, at a tolerance that shows.
#[test]
fn what_the_horizon_example_measures_is_within_its_certificate() {
    let model = folder("kjv-bloom");
    let mut problems = Problem::of_model(&model, &model.join("heldout.txt"), 2304).unwrap();
    problems.push(Problem::normal(2304, (4, 16), 3.0, 8.0).unwrap());
    for problem in &problems {
        let found = measure(problem, 0.5f32.powi(10)).unwrap().json();
        println!("{found}");
        for (name, rounding) in [("out", 2e-6), ("lse", 2e-6)] {
            let of = |what: &str| found[name][what].as_f64().unwrap();
            assert!(of("error") <= of("certified") + rounding, "{found}");
        }
        let sum = |what: &str| -> u64 {
            let heads = found["heads"].as_array().unwrap().iter();
            let pairs = heads.flat_map(|head| head[what].as_array().unwrap());
            pairs.map(|pairs| pairs.as_u64().unwrap()).sum()
        };
        let (computed, all) = (sum("computed"), sum("all"));
        assert_eq!(found["computed"], computed);
        assert_eq!(found["f16"]["differ_bitwise"], 0);
        assert_eq!(found["all"], all);
        // Each query and the 1 to 18 tiles that it sees.
        let heads = found["heads"].as_array().unwrap().len() as u64;
        assert_eq!(all, heads * (1..=18).map(|tiles| 128 * tiles).sum::<u64>());
        assert!(computed < all * 2 / 3, "{found}");
    }
}
