//! The kernels for decoding against the oracle.

use std::sync::Arc;

use flash_alibi::Attention;
use flash_alibi::cuda::cudarc::driver::CudaStream;
use flash_alibi::cuda::{Inputs, Layer, View, ViewMut};
use flash_alibi_testing::problem::OnDevice;
use flash_alibi_testing::strategy::{case_with_offsets, config, fail};
use flash_alibi_testing::{Case, Lengths, expect};
use half::{bf16, f16};
use libtest_mimic::Trial;
use proptest::prelude::*;

use crate::device::stream;

/// How much work one random case may be.
const WORK: usize = 500_000;

fn check<T: OnDevice>(
    stream: &Arc<CudaStream>,
    case: &Case,
    page_size: usize,
) -> Result<(), String> {
    let laid_out = case.lay_out::<T>();
    laid_out.check(&laid_out.decode_on_device(stream)?)?;
    let paged = case.lay_out_paged::<T>(page_size);
    for decode in [true, false] {
        let rows = paged.attend_on_device(stream, decode)?;
        let checked = paged.dense.check(&rows);
        checked.map_err(|why| format!("pages, decode {decode}: {why}"))?;
    }
    Ok(())
}

fn random_problems_follow_the_oracle() {
    let (_shared, stream) = stream();
    let cases = (
        case_with_offsets(WORK),
        prop::sample::select(vec![8usize, 16, 64, 256]),
    );
    proptest!(config(20), |((case, page_size) in cases)| {
        fail(check::<f16>(&stream, &case, page_size))?;
        fail(check::<bf16>(&stream, &case, page_size))?;
    });
}

fn batches_follow_the_oracle() {
    let (_shared, stream) = stream();
    for (batch, heads, head_dim, queries) in [
        (32, (4, 4), 64, 1),
        (7, (8, 2), 128, 1),
        (3, (71, 1), 64, 2),
        (2, (8, 1), 256, 16),
    ] {
        let keys = |b: usize| 61 * b % 1000;
        let sequences = (0..batch).map(|b| Lengths {
            q: queries.min(keys(b).max(1)),
            k: keys(b),
            ..Lengths::default()
        });
        let case = Case {
            sequences: sequences.collect(),
            packed: true,
            ..Case::dense(0, 0, 0, heads, head_dim)
        };
        expect(&case, check::<bf16>(&stream, &case, 16));
    }
}

fn a_workspace_that_is_too_short_is_an_error() {
    let (_shared, stream) = stream();
    let layer = Layer::new(&stream, Attention::new(2, 1, 64).build().unwrap()).unwrap();
    let (q, k) = ([1, 1, 2, 64], [1, 1024, 1, 64]);
    let zeros = |n: usize| stream.alloc_zeros::<f16>(n).unwrap();
    let (x, keys, mut out) = (zeros(128), zeros(65536), zeros(128));
    let view = View::new(&keys, &k).unwrap();
    let inputs = Inputs::new(View::new(&x, &q).unwrap(), view, view);
    let len = layer.workspace_bytes(1, 1, 1024);
    let mut decode = |len: usize| {
        let mut workspace = stream.alloc_zeros::<u8>(len).unwrap();
        let out = ViewMut::new(&mut out, &q).unwrap();
        layer.decode(&stream, &inputs, out, None, &mut workspace)
    };
    decode(len).unwrap();
    assert_eq!(
        decode(len - 16).unwrap_err().to_string(),
        format!(
            "workspace: found {} elements, expected at least {len}",
            len - 16
        )
    );
}

/// The kernels cut off what does not fit; a check names it.
fn what_lies_on_the_device_can_be_checked() {
    let (_shared, stream) = stream();
    let attention = Attention::new(2, 1, 64).build().unwrap();
    let x = stream.alloc_zeros::<f16>(4 * 8 * 64).unwrap();
    let check = |table: &[i32], lengths: &[i32], max_seqlen_k| {
        let (table, lengths) = (
            stream.clone_htod(table).unwrap(),
            stream.clone_htod(lengths).unwrap(),
        );
        let (q, k) = ([2, 1, 2, 64], [4, 8, 1, 64]);
        let [q, k] = [View::new(&x, &q).unwrap(), View::new(&x, &k).unwrap()];
        let inputs = Inputs::paged(q, k, k, &table, &lengths).max_seqlen_k(max_seqlen_k);
        let checked = inputs.check(&attention, &stream);
        checked.map_err(|error| error.to_string())
    };
    // What no query needs may be anything.
    assert_eq!(check(&[3, 0, 1, -9], &[16, 8], 16), Ok(()));
    for (table, lengths, max_seqlen_k, message) in [
        (
            [3, 4, 1, 2],
            [16, 8],
            16,
            "block_table: found 4 at index [0, 1], expected one of the 4 pages, from 0",
        ),
        (
            [3, 0, 1, 2],
            [16, 17],
            16,
            "seqused_k: found 17 at index 1, expected 0 to max_pages_per_sequence * page_size = 16",
        ),
        (
            [3, 0, 1, 2],
            [9, 16],
            12,
            "max_seqlen_k: found 12, expected at least 16, the keys of sequence 1",
        ),
    ] {
        assert_eq!(check(&table, &lengths, max_seqlen_k), Err(message.into()));
    }
}

pub fn trials() -> Vec<Trial> {
    trials![
        random_problems_follow_the_oracle,
        batches_follow_the_oracle,
        a_workspace_that_is_too_short_is_an_error,
        what_lies_on_the_device_can_be_checked,
    ]
}
