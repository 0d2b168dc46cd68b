//! Pools that are refused: what was found, and the layout that was expected.

use std::error::Error as _;

use candle_core::{DType, Device, Result, Tensor};
use flash_alibi::Attention;
use flash_alibi::candle::{CacheLayout, Lengths, append, attend, copy_pages};

use super::{bits, tensor};

#[track_caller]
fn assert_error<T>(result: Result<T>, message: &str) {
    let error = result
        .err()
        .unwrap_or_else(|| panic!("no error: {message}"));
    assert_eq!(error.to_string(), message);
    assert!(error.source().unwrap().is::<flash_alibi::Error>());
}

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
}

/// Where pools may have elements in common, nothing is written.
#[test]
fn pools_that_overlap_are_refused() -> Result<()> {
    let kv = zeros(&[9, 16, 2, 16]);
    let new = Tensor::ones((1, 2, 8), DType::F32, &Device::Cpu)?;
    let slots = tensor(&[3i64]);
    let halves = |n| kv.narrow(3, n, 8);
    let overlapping = [
        // One page too many, a row off, and half of a head.
        (kv.narrow(0, 0, 5)?, kv.narrow(0, 4, 5)?),
        (kv.narrow(1, 0, 8)?, kv.narrow(1, 1, 8)?),
        (halves(0)?, halves(4)?),
        // Apart, but of strides that do not say so.
        (
            halves(0)?,
            kv.transpose(0, 1)?
                .narrow(3, 8, 8)?
                .narrow(0, 0, 9)?
                .narrow(1, 0, 8)?,
        ),
    ];
    for (n, (k_pages, v_pages)) in overlapping.iter().enumerate() {
        let head_dim = k_pages.dim(3)?;
        let new = new.broadcast_as((1, 2, 8))?.repeat((1, 1, head_dim / 8))?;
        let message = match n {
            3 => "v_pages: found shape [9, 8, 2, 8], expected [9, 16, 2, 8], as k_pages",
            _ => "v_pages: found a tensor in the memory of k_pages, expected memory of its own",
        };
        assert_error(append(&new, &new, k_pages, v_pages, &slots), message);
        assert_error(copy_pages(k_pages, v_pages, None, &[(1, 2)]), message);
    }
    let square = zeros(&[16, 16, 2, 16]);
    let (k_pages, v_pages) = (
        square.narrow(3, 0, 8)?,
        square.transpose(0, 1)?.narrow(3, 8, 8)?,
    );
    let message = "v_pages: found a tensor in the memory of k_pages, expected memory of its own";
    assert_error(append(&new, &new, &k_pages, &v_pages, &slots), message);
    for tensor in [kv, square] {
        assert!(bits(&tensor)?.iter().all(|&bits| bits == 0));
    }
    Ok(())
}

#[test]
fn errors_name_the_layout_that_was_expected() -> Result<()> {
    let new = zeros(&[1, 2, 8]);
    let slots = tensor(&[3i64]);
    let good = || (zeros(&[4, 2, 2, 8, 4]), zeros(&[4, 2, 8, 8]));
    let call = |k_pages: &Tensor, v_pages: &Tensor| append(&new, &new, k_pages, v_pages, &slots);
    let (k_pages, v_pages) = good();
    call(&k_pages, &v_pages)?;
    for (k_pages, v_pages, message) in [
        (
            zeros(&[4, 2, 1, 8, 8]),
            zeros(&[4, 2, 8, 8]),
            "k_pages: found shape [4, 2, 1, 8, 8], expected [pages, heads_k, head_dim / 4, page_size, 4]",
        ),
        (
            good().0,
            zeros(&[4, 8, 2, 8]),
            "v_pages: found shape [4, 8, 2, 8], expected [4, 2, 8, 8], as k_pages",
        ),
        (
            zeros(&[4, 2, 2, 12, 4]),
            zeros(&[4, 2, 8, 12]),
            "page_size: found 12, expected a positive multiple of 8",
        ),
        (
            zeros(&[4, 2, 2, 4, 8]).transpose(3, 4)?,
            good().1,
            "k_pages: found strides [128, 64, 32, 1, 8], expected those of pages without gaps",
        ),
        (
            good().0,
            zeros(&[4, 2, 8, 16]).narrow(3, 0, 8)?,
            "v_pages: found strides [256, 128, 16, 1], expected those of pages without gaps",
        ),
        (
            good().0.narrow(0, 0, 1)?.broadcast_as((4, 2, 2, 8, 4))?,
            good().1,
            "k_pages: found strides [0, 4, 32, 1], expected strides that keep the output's elements apart",
        ),
    ] {
        assert_error(call(&k_pages, &v_pages), message);
        if !message.contains("strides") {
            assert_error(copy_pages(&k_pages, &v_pages, None, &[(1, 2)]), message);
        }
    }

    let layer = Attention::new(4, 2, 8).build()?;
    let (table, used) = (tensor(&[[1u32, 7]]), tensor(&[9u32]));
    let (q, lengths) = (zeros(&[1, 4, 8]), Lengths::paged(&table, &used));
    assert_error(
        attend(&layer, &q, &k_pages, &v_pages, lengths),
        "block_table: found 7 at index [0, 1], expected one of the 4 pages, from 0",
    );
    assert_error(
        attend(&layer, &q, &k_pages, &zeros(&[4, 8, 2, 8]), lengths),
        "v: found shape [4, 8, 2, 8], expected [4, 2, 8, 8], as k",
    );
    let other = Attention::new(4, 4, 8).build()?;
    assert_error(
        attend(&other, &q, &k_pages, &v_pages, lengths),
        "k: found shape [4, 8, 2, 8], expected [pages, page_size, 4, 8]",
    );

    let nhd = CacheLayout::Nhd;
    assert_error(
        nhd.of(&zeros(&[4, 2, 8]), &zeros(&[4, 2, 8])),
        "k_pages: found shape [4, 2, 8], expected [pages, page_size, heads_k, head_dim]",
    );
    assert_error(
        CacheLayout::Hnd.of(&zeros(&[4, 2, 8, 8]), &zeros(&[4])),
        "v_pages: found shape [4], expected [pages, heads_k, page_size, head_dim]",
    );
    assert_error(
        nhd.of_one(&zeros(&[2, 3, 8, 2, 8]), 1),
        "kv_pages: found shape [2, 3, 8, 2, 8], expected [pages, 2, page_size, heads_k, head_dim]",
    );
    assert_error(
        nhd.of_one(&zeros(&[3, 2, 8, 2, 8]), 0),
        "kv_pages: found shape [3, 2, 8, 2, 8], expected [2, pages, page_size, heads_k, head_dim]",
    );
    assert_error(
        nhd.of_one(&zeros(&[3, 2, 8, 2, 8]), 2),
        "dim: found 2, expected 0 or 1",
    );
    Ok(())
}
