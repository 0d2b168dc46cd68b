//! Checkpoints that say what is not computed, and folders that hold none: each is an error that names the key, the tensor or
//! the file.

use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};

use crate::variant::{Variant, refused};
use crate::{folder, load};

fn check(what: &str, found: &str, expected: &str) {
    assert!(found.contains(expected), "{what}:\n{found}\n{expected}");
}

/// Sets a key of a checkpoint and finds the error.
fn keys(base: &'static str, cases: &[(&str, Value, &str)]) {
    for (key, value, expected) in cases {
        let found = Variant::of(base).set(key, value.clone()).refused();
        check(
            key,
            &found,
            &format!("config.json: found {key} = {value}, expected {expected}"),
        );
    }
}

#[test]
fn keys_of_any_family() {
    for base in ["tiny-bloom", "tiny-mpt", "tiny-falcon-rw"] {
        keys(
            base,
            &[
                ("quantization_config", json!({ "bits": 4 }), "null"),
                ("sliding_window", 256.into(), "null"),
                ("is_encoder_decoder", true.into(), "false"),
                ("vocab_size", "many".into(), "an integer from 1 to 16777216"),
                ("layer_norm_epsilon", 0.into(), "a number above 0"),
                ("tie_word_embeddings", "yes".into(), "true or false"),
                ("repetition_penalty", 1.2.into(), "1"),
                ("some_new_scale", 2.into(), "no such key"),
            ],
        );
        // What a file may say besides.
        let variant = Variant::of(base)
            .set("_commit_hash", "5e1f")
            .set("torch_dtype", "bfloat16")
            .set(
                "auto_map",
                json!({ "AutoModelForCausalLM": "modeling.Model" }),
            )
            .set("repetition_penalty", 1.0)
            .set("do_sample", true)
            .set("some_new_scale", Value::Null);
        load(&variant.write()).unwrap();
    }
    let found = Variant::of("tiny-bloom")
        .set("model_type", "llama")
        .refused();
    check(
        "llama",
        &found,
        "found model_type llama, expected bloom, falcon or mpt",
    );
}

#[test]
fn keys_of_bloom() {
    keys(
        "tiny-bloom",
        &[
            ("n_head", 0.into(), "an integer from 1 to 16777216"),
            ("num_attention_heads", 4.into(), "the 6 of n_head"),
            ("n_inner", 100.into(), "192"),
            ("hidden_act", "relu".into(), "\"gelu\""),
        ],
    );
    let found = Variant::of("tiny-bloom").set("n_head", 7).refused();
    check("n_head", &found, "a hidden size of 48 and 7 heads");
}

#[test]
fn keys_of_mpt() {
    keys(
        "tiny-mpt",
        &[
            (
                "norm_type",
                "rmsnorm".into(),
                "\"low_precision_layernorm\", \"layernorm\"",
            ),
            (
                "norm_eps",
                0.001.into(),
                "the 0.00001 of layer_norm_epsilon",
            ),
            ("logit_scale", 2.into(), "1"),
            ("logit_scale", "inv_sqrt_d_model".into(), "1"),
            ("ffn_config.ffn_type", "mptglu".into(), "\"mptmlp\""),
            ("ffn_config.some_new_scale", 2.into(), "no such key"),
            ("attn_config", "flash".into(), "an object"),
            ("attn_config.alibi", false.into(), "true"),
            ("attn_config.alibi_bias_max", 0.into(), "a number above 0"),
            (
                "attn_config.attn_type",
                "multiquery_attention".into(),
                "\"multihead_attention\"",
            ),
            ("attn_config.kv_n_heads", 2.into(), "6"),
            (
                "attn_config.clip_qkv",
                (-1).into(),
                "a number of at least 0",
            ),
            ("attn_config.softmax_scale", "large".into(), "a number"),
            ("attn_config.qk_ln", true.into(), "false"),
            ("attn_config.qk_gn", true.into(), "false"),
            ("attn_config.prefix_lm", true.into(), "false"),
            ("attn_config.rope", true.into(), "false"),
            ("attn_config.sliding_window_size", 2.into(), "-1"),
            ("attn_config.attn_uses_sequence_id", true.into(), "false"),
            ("attn_config.some_new_scale", 2.into(), "no such key"),
        ],
    );
}

#[test]
fn keys_of_falcon() {
    keys(
        "tiny-falcon-rw",
        &[
            ("alibi", false.into(), "true"),
            ("activation", "relu".into(), "gelu, gelu_new"),
            ("num_kv_heads", 2.into(), "6"),
            ("num_ln_in_parallel_attn", 2.into(), "1 or null"),
            (
                "apply_residual_connection_post_layernorm",
                true.into(),
                "false",
            ),
        ],
    );
    let grouped = Variant::of("tiny-falcon-rw").set("new_decoder_architecture", true);
    check(
        "grouped",
        &grouped.refused(),
        "found parallel_attn = false, expected true",
    );
    let absent = Variant::of("tiny-falcon-rw").without("alibi").refused();
    check(
        "alibi",
        &absent,
        "found alibi = null, expected true: Falcon without it has rotary",
    );
}

#[test]
fn tensors() {
    let bloom = || Variant::of("tiny-bloom");
    let one = || Tensor::ones(48, DType::F32, &Device::Cpu).unwrap();
    for (what, variant, expected) in [
        (
            "biases",
            Variant::of("tiny-mpt").with_tensor("transformer.blocks.0.norm_1.bias", one()),
            "found transformer.blocks.0.norm_1.bias, expected no such tensors",
        ),
        (
            "more layers than n_layer",
            bloom().set("n_layer", 1),
            "found transformer.h.1.input_layernorm.bias, transformer.h.1.input_layernorm.weight, ",
        ),
        (
            "fewer layers than n_layer",
            bloom().set("n_layer", 3),
            "found no tensor transformer.h.2.input_layernorm.weight, expected one of [48]",
        ),
        (
            "a shape",
            bloom().set("vocab_size", 255),
            "found transformer.word_embeddings.weight of [256, 48], expected [255, 48]",
        ),
        (
            "no head",
            Variant::tied("tiny-bloom").set("tie_word_embeddings", false),
            "found no tensor lm_head.weight, expected one of [256, 48]",
        ),
        (
            "no embedding",
            bloom().without_tensor("transformer.word_embeddings.weight"),
            "found no tensor transformer.word_embeddings.weight",
        ),
        (
            "a bias of the head",
            bloom().with_tensor("lm_head.bias", one()),
            "found lm_head.bias, expected no such tensors",
        ),
        (
            "integers",
            bloom().map(|name, x| match name.ends_with("ln_f.bias") {
                true => x.to_dtype(DType::U8).unwrap(),
                false => x.clone(),
            }),
            "found transformer.ln_f.bias in U8, expected F16, BF16, F32 or F64",
        ),
        (
            "two prefixes",
            bloom().with_tensor("ema.ln_f.weight", one()),
            "found ema.ln_f.weight and transformer.ln_f.weight, expected one tensor that ends with ln_f.weight",
        ),
        (
            "other names",
            bloom().rename(|name| name.replace("ln_f", "final_norm")),
            "transformer.h.0.mlp.dense_h_to_4h.bias and 22 more, expected a tensor ln_f.weight, or one that ends with .ln_f.weight",
        ),
    ] {
        check(what, &variant.refused(), expected);
    }
}

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 279152\n";

#[test]
fn files_that_stand_for_others() {
    let bloom = || Variant::of("tiny-bloom");
    let pointer = |name: &str| bloom().with_file(name, POINTER).write_without_tensors();
    for name in [
        "model.safetensors",
        "model.safetensors.index.json",
        "config.json",
    ] {
        let found = refused(&pointer(name));
        check(name, &found, &format!("{name}: found a Git LFS pointer"));
    }
    let tokenizer = flash_alibi_models::Tokenizer::load(&pointer("tokenizer.json"));
    let found = format!("{:#}", tokenizer.err().unwrap());
    check(
        "tokenizer",
        &found,
        "tokenizer.json: found a Git LFS pointer",
    );

    let whole = fs::read(folder("tiny-bloom").join("model.safetensors")).unwrap();
    for len in [0, 4, 100, whole.len() - 1] {
        let cut = bloom().with_file("model.safetensors", &whole[..len]);
        let found = refused(&cut.write_without_tensors());
        let expected =
            format!("model.safetensors: found {len} bytes that are no whole safetensors file");
        check("cut short", &found, &expected);
    }
    for (name, expected) in [
        (
            "pytorch_model.bin",
            "found pytorch_model.bin, expected model.safetensors",
        ),
        ("bloom.gguf", "found bloom.gguf, expected model.safetensors"),
        (
            "model-00001-of-00002.safetensors",
            "found model-00001-of-00002.safetensors, expected",
        ),
        ("README.md", "found no weights, expected model.safetensors"),
    ] {
        let found = refused(&bloom().with_file(name, "x").write_without_tensors());
        check(name, &found, expected);
    }
}

#[test]
fn shards_that_are_not_what_the_index_says() {
    let bloom = Variant::of("tiny-bloom");
    let folder = bloom.write_shards(3, |_| ());
    fs::remove_file(folder.join("model-00002-of-00003.safetensors")).unwrap();
    let expected = "found no model-00002-of-00003.safetensors, of the 3 shards that model.safetensors.index.json lists";
    check("a shard is missing", &refused(&folder), expected);

    let folder = bloom.write_shards(2, |index| {
        index["weight_map"]["transformer.h.7.x"] = "model-00001-of-00002.safetensors".into();
    });
    let expected = "model-00001-of-00002.safetensors: found no transformer.h.7.x, which";
    check("a tensor is missing", &refused(&folder), expected);

    for path in ["../model.safetensors", "/model.safetensors", "..", ""] {
        let folder = bloom.write_shards(2, |index| {
            index["weight_map"]["transformer.h.0.x"] = path.into();
        });
        let expected =
            format!("model.safetensors.index.json: found {path:?} for transformer.h.0.x");
        check("a path", &refused(&folder), &expected);
    }

    let folder = bloom.write_shards(2, |_| ());
    let [first, second] =
        [1, 2].map(|i| folder.join(format!("model-0000{i}-of-00002.safetensors")));
    fs::copy(&first, &second).unwrap();
    check("twice", &refused(&folder), "which another shard has too");

    let folder = bloom.write_shards(2, |index| index["weight_map"] = Value::Null);
    check(
        "no map",
        &refused(&folder),
        "model.safetensors.index.json: found no weight_map",
    );
}

#[test]
fn settings_of_generation() {
    let with = |settings: Value| {
        Variant::of("tiny-bloom").with_file("generation_config.json", settings.to_string())
    };
    for (key, value, expected) in [
        (
            "eos_token_id",
            json!("</s>"),
            "a token, a list of tokens or null",
        ),
        (
            "eos_token_id",
            json!([1, -1]),
            "a token, a list of tokens or null",
        ),
        ("repetition_penalty", json!(1.2), "1"),
        ("num_beams", json!(4), "1"),
        ("suppress_tokens", json!([5]), "[]"),
    ] {
        let found = with(json!({ key: value })).refused();
        let expected =
            format!("generation_config.json: found {key} = {value}, expected {expected}");
        check(key, &found, &expected);
    }
    let neutral = json!({ "do_sample": true, "top_k": 50, "num_beams": 1, "repetition_penalty": 1.0, "max_length": 20 });
    load(&with(neutral).write()).unwrap();
}

#[test]
fn folders_and_caches() {
    let missing = refused(Path::new("no/such/folder"));
    assert_eq!(missing, "no/such/folder: there is no such folder");
    let file = refused(&folder("tiny-bloom").join("config.json"));
    check(
        "a file",
        &file,
        "found a file, expected the folder of a checkpoint",
    );
    let empty = Variant::of("tiny-bloom").write_without_tensors();
    fs::remove_file(empty.join("config.json")).unwrap();
    check("empty", &refused(&empty), "found no config.json");
    for text in ["[]", "{"] {
        fs::write(empty.join("config.json"), text).unwrap();
        check("no object", &refused(&empty), "config.json: ");
    }

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
    let unknown = model.forward(&[(a, &[1, 256])], &mut cache);
    assert_eq!(
        unknown.unwrap_err().to_string(),
        "found token 256, expected one of the 256 of the vocabulary"
    );
}

/// candle would abort the program.
#[test]
fn a_cache_that_does_not_fit_into_memory() {
    let model = crate::load(&Variant::of("tiny-bloom").write()).unwrap();
    let Err(error) = model.cache(1 << 30, 16) else {
        panic!("there is a cache of 2^34 tokens");
    };
    let error = error.to_string();
    assert!(
        error.starts_with("found a cache of 17179869184 tokens"),
        "{error}"
    );
}
