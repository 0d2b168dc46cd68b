//! Slopes against published values.
//!
//! Source of the rule: Press, Smith, Lewis, "Train Short, Test Long" (ICLR 2022), `get_slopes` in
//! fairseq/models/transformer.py of github.com/ofirpress/attention_with_linear_biases; BLOOM's and Falcon's
//! `build_alibi_tensor` in Hugging Face transformers give the same numbers. For `alibi_bias_max`: `gen_slopes` in
//! llm_foundry/models/layers/attention.py of github.com/mosaicml/llm-foundry.
//!
//! The numbers below were worked out from those, to twice the digits that f32 holds.

#![allow(clippy::approx_constant)] // Slopes as published; one of them happens to be 1/sqrt(2).

use flash_alibi::{Error, Slopes};

/// `2^-0.5`, `2^-1.5` to `2^-7.5`: every other slope of 16 heads.
const ODD_OF_16: [f64; 8] = [
    0.7071067811865475,
    0.3535533905932737,
    0.1767766952966368,
    0.0883883476483184,
    0.0441941738241592,
    0.0220970869120796,
    0.0110485434560398,
    0.0055242717280199,
];

const OF_8: [f64; 8] = [
    0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625,
];

#[track_caller]
fn assert_slopes(slopes: &Slopes, expected: &[f64]) {
    assert_eq!(slopes.heads(), expected.len());
    assert_eq!(slopes.batch(), None);
    for (head, &expected) in expected.iter().enumerate() {
        // Correctly rounded.
        assert_eq!(slopes.get(0, head), expected as f32, "head {head}");
    }
}

#[test]
fn of_8_heads() {
    assert_slopes(&Slopes::geometric(8), &OF_8);
}

#[test]
fn of_12_heads() {
    // MosaicBERT and Jina v2: those of 8, then every other of 16.
    let expected = [&OF_8[..], &ODD_OF_16[..4]].concat();
    assert_slopes(&Slopes::geometric(12), &expected);
}

#[test]
fn of_16_heads() {
    // BLOOM-560m.
    let expected: Vec<f64> = ODD_OF_16
        .iter()
        .zip(&OF_8)
        .flat_map(|(&a, &b)| [a, b])
        .collect();
    assert_slopes(&Slopes::geometric(16), &expected);
}

#[test]
fn of_40_heads() {
    // Baichuan-13B: 2^(-k/4) for k = 1..=32, then 2^(-k/8) for k = 1, 3, ..., 15.
    let roots = [
        0.8408964152537145,
        0.7071067811865475,
        0.5946035575013605,
        0.5,
    ];
    let mut expected: Vec<f64> = (0..32)
        .map(|i| roots[i % 4] / f64::from(1 << (i / 4)))
        .collect();
    expected.extend([
        0.9170040432046712,
        0.7711054127039704,
        0.6484197773255048,
        0.5452538663326288,
        0.4585020216023356,
        0.3855527063519852,
        0.3242098886627524,
        0.2726269331663144,
    ]);
    assert_slopes(&Slopes::geometric(40), &expected);
}

#[test]
fn of_112_heads() {
    // BLOOM-176B: 2^(-k/8) for k = 1..=64, then 2^(-k/16) for k = 1, 3, ..., 95.
    let roots = [
        0.9170040432046712, // 2^(-1/8)
        0.8408964152537145,
        0.7711054127039704,
        0.7071067811865475,
        0.6484197773255048,
        0.5946035575013605,
        0.5452538663326288,
        0.5,
    ];
    let mut expected: Vec<f64> = (0..64)
        .map(|i| roots[i % 8] / f64::from(1 << (i / 8)))
        .collect();
    let odd_roots = [
        0.9576032806985736, // 2^(-1/16)
        0.8781260801866497, // 2^(-3/16)
        0.8052451659746271,
        0.7384130729697496,
        0.6771277734684463,
        0.620928906036742,
        0.5693943173783458,
        0.5221368912137069, // 2^(-15/16)
    ];
    expected.extend((0..48).map(|i| odd_roots[i % 8] / f64::from(1 << (i / 8))));
    assert_slopes(&Slopes::geometric(112), &expected);
}

#[test]
fn of_few_heads() {
    assert_slopes(&Slopes::geometric(0), &[]);
    assert_slopes(&Slopes::geometric(1), &[0.00390625]);
    assert_slopes(&Slopes::geometric(2), &[0.0625, 0.00390625]);
    assert_slopes(&Slopes::geometric(3), &[0.0625, 0.00390625, 0.25]);
    assert_slopes(
        &Slopes::geometric(6),
        &[0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125],
    );
    // Falcon-7B.
    assert_eq!(
        Slopes::geometric(71).get(0, 64),
        0.9576032806985736_f64 as f32
    );
}

#[test]
fn of_mpt() {
    // StoryWriter: alibi_bias_max 16 on 32 heads is 2^(-k/2); shown on 8 heads, 4^-k.
    let expected = [
        0.25,
        0.0625,
        0.015625,
        0.00390625,
        9.765625e-4,
        2.44140625e-4,
        6.103515625e-5,
        1.52587890625e-5,
    ];
    assert_slopes(&Slopes::with_bias_max(8, 16.0), &expected);
    let storywriter = Slopes::with_bias_max(32, 16.0);
    assert_eq!(storywriter.get(0, 0), 0.7071067811865475_f64 as f32);
    assert_eq!(storywriter.get(0, 31), 1.0 / 65536.0);
    // llm-foundry takes the slopes of 16 heads, the odd ones first, and cuts: the same as the rule above.
    let expected = [
        0.25,
        0.0625,
        0.015625,
        0.00390625,
        9.765625e-4,
        2.44140625e-4,
        6.103515625e-5,
        1.52587890625e-5,
    ]
    .into_iter()
    .chain([0.5, 0.125, 0.03125, 0.0078125]);
    assert_slopes(
        &Slopes::with_bias_max(12, 16.0),
        &expected.collect::<Vec<_>>(),
    );
    assert_eq!(Slopes::with_bias_max(40, 8.0), Slopes::geometric(40));
}

#[test]
fn of_a_head_range() {
    // Two ranks of a model of 12 heads: neither has the slopes of a model of 6.
    let model = Slopes::geometric(12);
    let ranks = [
        model.head_range(0..6).unwrap(),
        model.head_range(6..12).unwrap(),
    ];
    assert_slopes(&ranks[0], &OF_8[..6]);
    assert_slopes(&ranks[1], &[&OF_8[6..], &ODD_OF_16[..4]].concat());
    assert_eq!(model.head_range(3..3).unwrap().heads(), 0);
    assert_eq!(model.head_range(12..12).unwrap().heads(), 0);
    assert_eq!(model.head_range(0..12).unwrap(), model);

    let slopes = Slopes::per_batch_and_head(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2, 3).unwrap();
    let range = slopes.head_range(1..3).unwrap();
    assert_eq!((range.batch(), range.heads()), (Some(2), 2));
    assert_eq!(range.as_slice(), [2.0, 3.0, 5.0, 6.0]);
}

#[test]
fn scaled() {
    // Falcon-RW: the bias is scaled with the scores, by 1/sqrt(64).
    let falcon = Slopes::geometric(8).scaled(0.125);
    assert_slopes(&falcon, &OF_8.map(|slope| slope / 8.0));
    let slopes = Slopes::per_batch_and_head(&[1.0, -2.0], 2, 1)
        .unwrap()
        .scaled(-0.5);
    assert_eq!(
        (slopes.batch(), slopes.as_slice()),
        (Some(2), &[-0.5, 1.0][..])
    );
}

#[test]
fn given() {
    assert_slopes(&Slopes::zero(3), &[0.0; 3]);
    assert_slopes(&Slopes::per_head(&[0.5, -1.0]), &[0.5, -1.0]);
    let slopes = Slopes::per_batch_and_head(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2, 3).unwrap();
    assert_eq!((slopes.batch(), slopes.heads()), (Some(2), 3));
    assert_eq!((slopes.get(0, 2), slopes.get(1, 0)), (3.0, 4.0));
    let empty = Slopes::per_batch_and_head(&[], 0, 5).unwrap();
    assert_eq!((empty.batch(), empty.heads()), (Some(0), 5));
}

#[test]
fn of_the_wrong_number() {
    for (batch, heads) in [(2, 2), (3, 1), (0, 5), (usize::MAX, 2)] {
        assert_eq!(
            Slopes::per_batch_and_head(&[0.0; 5], batch, heads),
            Err(Error::Length {
                argument: "slopes",
                found: 5,
                expected: format!("batch * heads = {batch} * {heads}"),
            })
        );
    }
    assert!(Slopes::per_batch_and_head(&[0.0; 5], 5, 1).is_ok());
}
