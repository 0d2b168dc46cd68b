//! Encoders: Jina embeddings v2 against candle-transformers, its variant for code against plain arithmetic in f64.

use std::collections::{BTreeMap, HashMap};

use candle_core::{D, DType, Device, IndexOp, Module, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::jina_bert::{BertModel, Config};
use flash_alibi::Horizon;
use flash_alibi_models::{Encoder, cosines, normalised};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use crate::max_difference;
use crate::variant::Variant;

const LAYERS: usize = 3;
const VOCAB: u32 = 256;

/// Random weights, of which norms and biases are no exception.
struct Weights(ChaCha8Rng);

impl Weights {
    fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    fn around(&mut self, centre: f32, most: f32, shape: &[usize]) -> Tensor {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count)
            .map(|_| centre + self.0.random_range(-most..most))
            .collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    /// Outputs have about the variance of the features.
    fn linear(&mut self, outputs: usize, features: usize) -> Tensor {
        self.around(0.0, (3.0 / features as f32).sqrt(), &[outputs, features])
    }
}

/// The checkpoint of a small encoder in the layout of Jina's, or of Jina's for code.
fn checkpoint(heads: usize, head_dim: usize, code: bool) -> Variant {
    let hidden = heads * head_dim;
    let wide = 2 * hidden;
    let config = json!({
        "model_type": "bert", "vocab_size": VOCAB, "hidden_size": hidden, "num_hidden_layers": LAYERS,
        "num_attention_heads": heads, "intermediate_size": wide, "hidden_act": "gelu", "feed_forward_type": "geglu",
        "max_position_embeddings": 512, "position_embedding_type": "alibi", "type_vocab_size": 2,
        "initializer_range": 0.02, "layer_norm_eps": 1e-12, "pad_token_id": 0, "emb_pooler": "mean",
        "attention_probs_dropout_prob": 0.0, "classifier_dropout": null, "attn_implementation": "torch",
    });
    let mut weights = Weights::new(heads as u64);
    let mut tensors = BTreeMap::new();
    let mut norms = vec!["embeddings.LayerNorm".to_owned()];
    for (table, rows) in [
        ("word_embeddings", VOCAB as usize),
        ("token_type_embeddings", 2),
    ] {
        let rows = weights.around(0.0, 1.0, &[rows, hidden]);
        tensors.insert(format!("embeddings.{table}.weight"), rows);
    }
    for i in 0..LAYERS {
        let name = |part: &str| format!("encoder.layer.{i}.{part}");
        let (gated, down) = match code {
            false => ("mlp.gated_layers", "mlp.wo"),
            true => ("mlp.up_gated_layer", "mlp.down_layer"),
        };
        for (part, outputs, features) in [
            ("attention.self.query", hidden, hidden),
            ("attention.self.key", hidden, hidden),
            ("attention.self.value", hidden, hidden),
            ("attention.output.dense", hidden, hidden),
            (gated, 2 * wide, hidden),
            (down, hidden, wide),
        ] {
            let weight = weights.linear(outputs, features);
            tensors.insert(name(&format!("{part}.weight")), weight);
            if part != gated {
                let bias = weights.around(0.0, 0.2, &[outputs]);
                tensors.insert(name(&format!("{part}.bias")), bias);
            }
        }
        norms.push(name("attention.output.LayerNorm"));
        norms.extend(match code {
            false => vec![name("mlp.layernorm")],
            true => vec![
                name("attention.self.layer_norm_q"),
                name("attention.self.layer_norm_k"),
                name("layer_norm_1"),
                name("layer_norm_2"),
            ],
        });
    }
    for norm in norms {
        tensors.insert(
            format!("{norm}.weight"),
            weights.around(1.0, 0.2, &[hidden]),
        );
        tensors.insert(format!("{norm}.bias"), weights.around(0.0, 0.2, &[hidden]));
    }
    Variant::new(config, tensors)
}

/// Jina's layout.
pub fn jina(heads: usize, head_dim: usize) -> Variant {
    checkpoint(heads, head_dim, false)
}

fn load(variant: &Variant) -> Encoder {
    let folder = variant.write();
    Encoder::load(&folder, &Device::Cpu, Horizon::default()).unwrap()
}

fn refused(variant: &Variant) -> String {
    let folder = variant.write();
    match Encoder::load(&folder, &Device::Cpu, Horizon::default()) {
        Ok(_) => panic!("{} was loaded", folder.display()),
        Err(error) => format!("{error:#}"),
    }
}

/// Texts of mixed lengths: a single token, several tiles of keys, and neighbours of such sizes.
fn texts() -> Vec<Vec<u32>> {
    let mut random = ChaCha8Rng::seed_from_u64(3);
    [1, 7, 333, 64, 129, 2, 500]
        .into_iter()
        .map(|length| (0..length).map(|_| random.random_range(0..VOCAB)).collect())
        .collect()
}

fn slices(texts: &[Vec<u32>]) -> Vec<&[u32]> {
    texts.iter().map(Vec::as_slice).collect()
}

/// The rows of each text.
fn split(packed: &Tensor, texts: &[Vec<u32>]) -> Vec<Tensor> {
    let mut start = 0;
    let rows = texts.iter().map(|text| {
        let rows = packed.narrow(0, start, text.len()).unwrap();
        start += text.len();
        rows
    });
    rows.collect()
}

/// Both sides compute in f32 and sum in different orders, through norms that keep hidden states near 1.
const TOLERANCE: f32 = 1e-4;
const LEAST_COSINE: f32 = 0.999_999;

#[test]
fn packed_texts_get_what_candle_transformers_computes_for_each_alone() {
    // Slopes of a power of two of heads, and of others.
    for (heads, head_dim) in [(4, 16), (6, 8), (2, 64)] {
        let variant = jina(heads, head_dim);
        let tensors: HashMap<String, Tensor> = variant.tensors.clone().into_iter().collect();
        let config: Config = serde_json::from_value(variant.config.clone()).unwrap();
        let theirs = BertModel::new(
            VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu),
            &config,
        )
        .unwrap();
        let (encoder, texts) = (load(&variant), texts());
        let hidden = encoder.forward(&slices(&texts)).unwrap();
        let embeddings = encoder.embed(&slices(&texts)).unwrap();
        let mut largest = 0f32;
        for (i, (rows, text)) in split(&hidden, &texts).iter().zip(&texts).enumerate() {
            let ids = Tensor::new(text.as_slice(), &Device::Cpu).unwrap();
            let expected = theirs.forward(&ids.unsqueeze(0).unwrap()).unwrap();
            let mean = expected.mean(1).unwrap();
            let found = embeddings.i(i..=i).unwrap();
            largest = largest
                .max(max_difference(rows, &expected.squeeze(0).unwrap()))
                .max(max_difference(&found, &mean));
            let both = Tensor::cat(&[&found, &mean], 0).unwrap();
            let cosine = cosines(&both).unwrap()[0][1];
            assert!(cosine > LEAST_COSINE, "{heads} heads, text {i}: {cosine}");
        }
        println!("{heads} heads of {head_dim}: at most {largest:e}");
        assert!(largest <= TOLERANCE, "{heads} heads: {largest}");
    }
}

#[test]
fn a_text_gets_the_same_bits_beside_others() {
    let (encoder, texts) = (load(&jina(4, 16)), texts());
    let packed = encoder.forward(&slices(&texts)).unwrap();
    for (rows, text) in split(&packed, &texts).iter().zip(&texts) {
        let alone = encoder.forward(&[text]).unwrap();
        assert_eq!(max_difference(rows, &alone), 0.0, "{} tokens", text.len());
    }
}

/// Attention and feed-forward layers of the variant for code, for one text, in f64.
fn code_in_f64(variant: &Variant, heads: usize, ids: &[u32]) -> Tensor {
    let tensor = |name: &str| variant.tensors[name].to_dtype(DType::F64).unwrap();
    let norm = |x: &Tensor, name: &str| {
        let centred = x
            .broadcast_sub(&x.mean_keepdim(D::Minus1).unwrap())
            .unwrap();
        let variance = centred.sqr().unwrap().mean_keepdim(D::Minus1).unwrap();
        let unit = centred.broadcast_div(&(variance + 1e-12).unwrap().sqrt().unwrap());
        unit.unwrap()
            .broadcast_mul(&tensor(&format!("{name}.weight")))
            .unwrap()
            .broadcast_add(&tensor(&format!("{name}.bias")))
            .unwrap()
    };
    let product = |x: &Tensor, name: &str| {
        let weight = tensor(&format!("{name}.weight"));
        x.matmul(&weight.t().unwrap()).unwrap()
    };
    let linear = |x: &Tensor, name: &str| {
        product(x, name)
            .broadcast_add(&tensor(&format!("{name}.bias")))
            .unwrap()
    };
    let n = ids.len();
    let distances: Vec<f64> = (0..n * n)
        .map(|at| (at / n).abs_diff(at % n) as f64)
        .collect();
    let distances = Tensor::from_vec(distances, (n, n), &Device::Cpu).unwrap();

    let ids = Tensor::new(ids, &Device::Cpu).unwrap();
    let words = tensor("embeddings.word_embeddings.weight");
    let types = tensor("embeddings.token_type_embeddings.weight");
    let words = words.index_select(&ids, 0).unwrap();
    let x = words.broadcast_add(&types.i(0).unwrap()).unwrap();
    let mut x = norm(&x, "embeddings.LayerNorm");
    for i in 0..LAYERS {
        let name = |part: &str| format!("encoder.layer.{i}.{part}");
        let of_self = |part: &str| name(&format!("attention.self.{part}"));
        let q = norm(&linear(&x, &of_self("query")), &of_self("layer_norm_q"));
        let k = norm(&linear(&x, &of_self("key")), &of_self("layer_norm_k"));
        let v = linear(&x, &of_self("value"));
        let head_dim = q.dim(1).unwrap() / heads;
        let attended = (0..heads).map(|head| {
            let of_head = |x: &Tensor| x.narrow(1, head * head_dim, head_dim).unwrap();
            let scores = of_head(&q).matmul(&of_head(&k).t().unwrap()).unwrap();
            // Powers of two of heads: 2^-(8 / heads), its square, and so on.
            let slope = 0.5f64.powf(8.0 / heads as f64 * (head + 1) as f64);
            let scores = (scores / (head_dim as f64).sqrt()).unwrap();
            let scores = (scores - (&distances * slope).unwrap()).unwrap();
            let weights = candle_nn::ops::softmax(&scores, 1).unwrap();
            weights.matmul(&of_head(&v).contiguous().unwrap()).unwrap()
        });
        let attended = Tensor::cat(&attended.collect::<Vec<_>>(), 1).unwrap();
        let out = linear(&attended, &name("attention.output.dense"));
        let out = norm(&(out + &x).unwrap(), &name("attention.output.LayerNorm"));
        let y = norm(&(out + &x).unwrap(), &name("layer_norm_1"));
        let up_and_gate = product(&y, &name("mlp.up_gated_layer"));
        let wide = up_and_gate.dim(1).unwrap() / 2;
        let up = up_and_gate.narrow(1, 0, wide).unwrap();
        let gate = up_and_gate.narrow(1, wide, wide).unwrap();
        let fed = (up * gate.gelu_erf().unwrap()).unwrap();
        let fed = linear(&fed, &name("mlp.down_layer"));
        x = norm(&(fed + y).unwrap(), &name("layer_norm_2"));
    }
    x
}

#[test]
fn the_variant_for_code_normalises_queries_and_keys() {
    let (heads, head_dim) = (4, 16);
    let variant = checkpoint(heads, head_dim, true);
    let (encoder, texts) = (load(&variant), texts());
    let hidden = encoder.forward(&slices(&texts)).unwrap();
    let mut largest = 0f32;
    for (rows, text) in split(&hidden, &texts).iter().zip(&texts) {
        let expected = code_in_f64(&variant, heads, text);
        let rows = rows.to_dtype(DType::F64).unwrap();
        let difference = (rows - expected).unwrap().to_dtype(DType::F32).unwrap();
        largest = largest.max(max_difference(
            &difference,
            &difference.zeros_like().unwrap(),
        ));
    }
    println!("at most {largest:e}");
    assert!(largest <= TOLERANCE, "{largest}");
}

/// MosaicBERT's checkpoints: one tensor of queries, keys and values, a prefix, what follows the encoder, and a key for
/// positions that its code does not read.
#[test]
fn mosaic_bert_differs_in_names() {
    let variant = jina(4, 16);
    let mut mosaic = variant.clone();
    for i in 0..LAYERS {
        for end in ["weight", "bias"] {
            let name = |part: &str| format!("encoder.layer.{i}.attention.self.{part}.{end}");
            let parts = ["query", "key", "value"].map(|part| variant.tensors[&name(part)].clone());
            mosaic = mosaic.with_tensor(&name("Wqkv"), Tensor::cat(&parts, 0).unwrap());
            for part in ["query", "key", "value"] {
                mosaic = mosaic.without_tensor(&name(part));
            }
        }
    }
    let pooler = Tensor::zeros((64, 64), DType::F32, &Device::Cpu).unwrap();
    let mosaic = mosaic
        .rename(|name| format!("bert.{name}"))
        .with_tensor("bert.pooler.dense.weight", pooler.clone())
        .with_tensor("cls.predictions.transform.dense.weight", pooler)
        .set("position_embedding_type", "absolute")
        .set("alibi_starting_size", 512)
        .without("feed_forward_type")
        .without("emb_pooler");
    let texts = texts();
    let hidden = |variant: &Variant| load(variant).forward(&slices(&texts)).unwrap();
    assert_eq!(max_difference(&hidden(&variant), &hidden(&mosaic)), 0.0);
}

#[test]
fn cosines_are_those_of_vectors_of_length_1() {
    let embeddings = Tensor::new(&[[3f32, 4.0], [-4.0, 3.0], [0.3, 0.4]], &Device::Cpu).unwrap();
    let unit: Vec<Vec<f32>> = normalised(&embeddings).unwrap().to_vec2().unwrap();
    let expected = [[0.6, 0.8], [-0.8, 0.6], [0.6, 0.8]];
    for (found, expected) in unit.iter().flatten().zip(expected.iter().flatten()) {
        assert!((found - expected).abs() < 1e-6, "{unit:?}");
    }
    let found = cosines(&embeddings).unwrap();
    let expected = [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]];
    for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    }
}

#[test]
fn keys_and_tensors_that_are_not_computed_are_refused_by_name() {
    let cases: &[(&str, Value, &str)] = &[
        (
            "position_embedding_type",
            "absolute".into(),
            "position_embedding_type = absolute, expected alibi",
        ),
        (
            "position_embedding_type",
            Value::Null,
            "position_embedding_type = absolute, expected alibi",
        ),
        (
            "feed_forward_type",
            "reglu".into(),
            "feed_forward_type = \"reglu\", expected \"geglu\" or null",
        ),
        (
            "hidden_act",
            "relu".into(),
            "hidden_act = \"relu\", expected \"gelu\" or null",
        ),
        (
            "emb_pooler",
            "cls".into(),
            "emb_pooler = \"cls\", expected \"mean\" or null",
        ),
        (
            "is_decoder",
            true.into(),
            "is_decoder = true, expected false or null",
        ),
        (
            "layer_norm_eps",
            0.into(),
            "layer_norm_eps = 0, expected a number above 0",
        ),
        (
            "num_attention_heads",
            7.into(),
            "a hidden size of 64 and 7 heads",
        ),
        (
            "some_new_scale",
            2.into(),
            "some_new_scale = 2, expected no such key",
        ),
        (
            "model_type",
            "bloom".into(),
            "model_type bloom, expected bert",
        ),
    ];
    for (key, value, expected) in cases {
        let found = refused(&jina(4, 16).set(key, value.clone()));
        assert!(
            found.contains(&format!("config.json: found {expected}")),
            "{key}: {found}"
        );
    }
    let positions = "embeddings.position_embeddings.weight";
    let rows = Tensor::zeros((512, 64), DType::F32, &Device::Cpu).unwrap();
    let found = refused(&jina(4, 16).with_tensor(positions, rows));
    assert!(
        found.contains(&format!("found {positions}, expected no such tensors")),
        "{found}"
    );
    let missing = "encoder.layer.2.mlp.wo.bias";
    let found = refused(&jina(4, 16).without_tensor(missing));
    assert!(
        found.contains(&format!("found no tensor {missing}, expected one of [64]")),
        "{found}"
    );
}

#[test]
fn texts_that_have_no_embedding_are_refused() {
    let encoder = load(&jina(4, 16));
    let refused = |texts: &[&[u32]]| encoder.embed(texts).unwrap_err().to_string();
    assert_eq!(refused(&[]), "found no texts, expected at least one");
    assert_eq!(refused(&[&[1], &[]]), "found no tokens in text 1");
    assert_eq!(
        refused(&[&[1, 256]]),
        "found token 256 in text 0, expected one of the 256 of the vocabulary"
    );
}
