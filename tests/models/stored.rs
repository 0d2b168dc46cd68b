//! Checkpoints that are stored in other ways and compute the same.

use candle_core::{DType, Tensor};
use serde_json::{Value, json};

use crate::variant::Variant;
use crate::{LOGIT_TOLERANCE, greedy_golden, load, logits, max_difference};

fn same(what: &str, variant: &Variant, case: &str) {
    let difference = variant.difference(case);
    println!("{what}: logits differ by at most {difference:e}");
    assert!(difference <= LOGIT_TOLERANCE, "{what}: {difference}");
}

/// The embedding under the head's name.
fn head_only(variant: Variant, embedding: &'static str) -> Variant {
    variant.rename(|name| match name == embedding {
        true => "lm_head.weight".into(),
        false => name.into(),
    })
}

#[test]
fn heads_tied_or_not_and_under_either_name() {
    for (base, embedding) in [
        ("tiny-bloom", "transformer.word_embeddings.weight"),
        ("tiny-mpt", "transformer.wte.weight"),
    ] {
        same("untied", &Variant::of(base), "untied");
        let tied = Variant::tied(base);
        same("tied", &tied, "tied");
        same(
            "tied by default",
            &tied.clone().without("tie_word_embeddings"),
            "tied",
        );
        same("head only", &head_only(tied.clone(), embedding), "tied");
        let words = tied.tensors[embedding].clone();
        same(
            "both of a pair",
            &tied.with_tensor("lm_head.weight", words),
            "tied",
        );
        // The file says more than the configuration.
        same(
            "both, not a pair",
            &Variant::of(base).set("tie_word_embeddings", true),
            "untied",
        );
    }
    for base in ["tiny-falcon-rw", "tiny-falcon-mqa"] {
        let tied = Variant::of(base);
        same(base, &tied, "tied");
        same(
            base,
            &head_only(tied, "transformer.word_embeddings.weight"),
            "tied",
        );
    }
}

#[test]
fn tokens_that_follow_greedily() {
    for (base, case) in [
        ("tiny-bloom", "untied"),
        ("tiny-mpt", "untied"),
        ("tiny-falcon-rw", "tied"),
        ("tiny-falcon-mqa", "tied"),
    ] {
        let (_, golden) = greedy_golden(base);
        assert_eq!(json!(Variant::of(base).greedy().0), golden[case], "{base}");
    }
}

#[test]
fn any_prefix_and_any_number_of_shards() {
    for prefix in ["", "model.", "module.transformer."] {
        let rename = |name: &str| match name.strip_prefix("transformer.") {
            Some(name) => format!("{prefix}{name}"),
            None => format!(
                "{}{name}",
                if prefix.starts_with("module") {
                    "module."
                } else {
                    ""
                }
            ),
        };
        for base in ["tiny-bloom", "tiny-mpt"] {
            let variant = Variant::of(base).rename(rename);
            same(prefix, &variant, "untied");
            let sharded = load(&variant.write_shards(3, |_| ())).unwrap();
            let difference = variant.difference_of(&sharded, "untied");
            assert!(difference <= LOGIT_TOLERANCE, "{prefix}: {difference}");
        }
    }
}

#[test]
fn keys_by_their_old_names_and_defaults_of_absent_ones() {
    let bloom = Variant::of("tiny-bloom")
        .set("n_embed", 48)
        .set("num_attention_heads", 6)
        .without("hidden_size")
        .without("n_head")
        .without("n_layer")
        .without("layer_norm_epsilon")
        .without("apply_residual_connection_post_layernorm")
        .set("offset_alibi", 100)
        .set("n_inner", Value::Null);
    same("BLOOM", &bloom, "untied");
    same("n_embed", &bloom.set("hidden_size", 64), "untied");
    let mpt = Variant::of("tiny-mpt")
        .without("no_bias")
        .without("norm_type");
    for attention in [json!(null), json!({}), json!({ "attn_impl": "triton" })] {
        same("MPT", &mpt.clone().set("attn_config", attention), "untied");
    }
    let mpt = mpt.without("attn_config").without("expansion_ratio");
    same("MPT", &mpt.without("layer_norm_epsilon"), "untied");
    let falcon = Variant::of("tiny-falcon-mqa")
        .without("multi_query")
        .without("parallel_attn")
        .without("bias")
        .without("ffn_hidden_size")
        .without("activation")
        .without("num_kv_heads");
    same("Falcon", &falcon, "tied");
}

#[test]
fn settings_of_attention() {
    let mpt = Variant::tied("tiny-mpt");
    let story = mpt.clone().set("attn_config.clip_qkv", 6.0);
    let story = story.set("attn_config.alibi_bias_max", 16);
    same("StoryWriter's", &story, "tied_bias_max_16_clip_qkv_6");
    assert!(story.difference("tied") > 0.01);
    // 0 is no limit to transformers.
    same(
        "clip_qkv 0",
        &mpt.clone().set("attn_config.clip_qkv", 0),
        "tied",
    );
    let scale = 8f64.sqrt().recip();
    same(
        "softmax_scale",
        &mpt.clone().set("attn_config.softmax_scale", scale),
        "tied",
    );
    assert!(
        mpt.clone()
            .set("attn_config.softmax_scale", 1.0)
            .difference("tied")
            > 0.01
    );
    same(
        "no window",
        &mpt.set("attn_config.sliding_window_size", -1),
        "tied",
    );
}

/// What transformers 4 writes within the configuration: all that any configuration has.
#[test]
fn a_configuration_within_repeats_what_has_no_bearing() {
    let attention = json!({
        "add_cross_attention": false, "alibi": true, "bad_words_ids": null, "chunk_size_feed_forward": 0, "diversity_penalty": 0.0,
        "do_sample": false, "early_stopping": false, "encoder_no_repeat_ngram_size": 0, "id2label": { "0": "LABEL_0" },
        "is_decoder": false, "is_encoder_decoder": false, "length_penalty": 1.0, "max_length": 20, "min_length": 0,
        "no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1, "num_return_sequences": 1,
        "output_scores": false, "pruned_heads": {}, "remove_invalid_values": false, "repetition_penalty": 1.0,
        "return_dict": true, "temperature": 1.0, "tf_legacy_loss": false, "tie_encoder_decoder": false,
        "tie_word_embeddings": true, "top_k": 50, "top_p": 1.0, "torch_dtype": null, "torchscript": false,
        "typical_p": 1.0, "use_bfloat16": false, "model_type": "", "attn_impl": "torch"
    });
    let variant = Variant::of("tiny-mpt").set("attn_config", attention);
    let feed = json!({ "ffn_type": "mptmlp", "fc_type": "torch" });
    same("repeated", &variant.set("ffn_config", feed), "untied");
}

/// Biases of 0 change nothing, others do.
#[test]
fn biases_of_mpt_are_read_where_the_file_has_them() {
    let variant = |value: f32| {
        let mut variant = Variant::tied("tiny-mpt").set("no_bias", false);
        for (name, tensor) in variant.tensors.clone() {
            let outputs = tensor.dim(0).unwrap();
            if !name.contains("wte") {
                let bias = Tensor::full(value, outputs, tensor.device()).unwrap();
                variant = variant.with_tensor(&name.replace(".weight", ".bias"), bias);
            }
        }
        variant
    };
    same("biases of 0", &variant(0.0), "tied");
    assert!(variant(0.1).difference("tied") > 0.01);
    same(
        "none in the file",
        &Variant::tied("tiny-mpt").set("no_bias", false),
        "tied",
    );
    let missing = variant(0.0).without_tensor("transformer.blocks.1.norm_2.bias");
    let found = missing.refused();
    assert!(
        found.contains("found no tensor transformer.blocks.1.norm_2.bias"),
        "{found}"
    );
}

/// The larger Falcon's layouts, of the same weights: one key head, and two that are copies of it.
#[test]
fn key_heads_and_norms_of_falcon() {
    let grouped = Variant::of("tiny-falcon-mqa")
        .set("new_decoder_architecture", true)
        .set("num_kv_heads", 1)
        .set("num_ln_in_parallel_attn", 1);
    same("one key head", &grouped, "tied");
    let two = grouped.clone().set("num_kv_heads", 2).map(|name, tensor| {
        if !name.ends_with("query_key_value.weight") {
            return tensor.clone();
        }
        // [6 queries, key, value] of 8 rows each.
        let rows = |from: usize, heads: usize| tensor.narrow(0, 8 * from, 8 * heads).unwrap();
        let parts = [rows(0, 3), rows(6, 2), rows(3, 3), rows(6, 2)];
        Tensor::cat(&parts, 0).unwrap()
    });
    same("two key heads", &two, "tied");
    let mut norms = two.without("num_ln_in_parallel_attn");
    for (name, tensor) in norms.tensors.clone() {
        if name.contains(".input_layernorm.") {
            norms = norms
                .without_tensor(&name)
                .with_tensor(&name.replace("input_layernorm", "ln_attn"), tensor.clone())
                .with_tensor(&name.replace("input_layernorm", "ln_mlp"), tensor);
        }
    }
    same("two norms", &norms, "tied");
    let rotary = Tensor::ones(4, DType::F32, &candle_core::Device::Cpu).unwrap();
    let name = "transformer.h.0.self_attention.maybe_rotary.inv_freq";
    same(
        "rotary frequencies",
        &norms.with_tensor(name, rotary),
        "tied",
    );
}

/// What is stored in fewer bits is what those bits say.
#[test]
fn weights_in_16_and_64_bits() {
    let tokens = [vec![1, 2, 3, 200]];
    let of = |variant: &Variant| logits(&load(&variant.write()).unwrap(), &tokens, &[4]);
    for dtype in [DType::F16, DType::BF16, DType::F64] {
        let stored = Variant::of("tiny-bloom").map(|_, x| x.to_dtype(dtype).unwrap());
        let same = stored.clone().map(|_, x| x.to_dtype(DType::F32).unwrap());
        assert_eq!(max_difference(&of(&stored), &of(&same)), 0.0, "{dtype:?}");
    }
}
