//! Values, lengths and alignments that nobody has checked.

use super::arguments::{ARGUMENTS, Buffers};
use super::*;

#[test]
fn a_workspace_may_begin_anywhere() {
    let Some((_turn, context)) = device() else {
        return;
    };
    let stream = context.new_stream().unwrap();
    let attention = |horizon| {
        let attention = Attention::new(HEADS, HEADS, HEAD_DIM).horizon(horizon);
        attention.build().unwrap()
    };
    let keys = 2048;
    let kv = ones(&stream, keys);
    let (q, shape_q, shape_k) = (
        ones(&stream, 1),
        [1, 1, HEADS, HEAD_DIM],
        [1, keys, HEADS, HEAD_DIM],
    );
    let k = View::new(&kv, &shape_k).unwrap();
    let inputs = Inputs::new(View::new(&q, &shape_q).unwrap(), k, k);
    for horizon in [Horizon::Off, Horizon::Certified { tolerance: 1e-3 }] {
        let layer = Layer::new(&stream, attention(horizon)).unwrap();
        let len = layer.workspace_bytes(1, 1, keys);
        let mut arena = stream.alloc_zeros::<u8>(len + 17).unwrap();
        for start in [0, 1, 2, 7, 15, 16, 17] {
            let mut workspace = arena.slice_mut(start..start + len);
            for decode in [false, true] {
                let mut out = stream.alloc_zeros::<f16>(ROW).unwrap();
                let to = ViewMut::new(&mut out, &shape_q).unwrap();
                let called = match decode {
                    true => layer.decode(&stream, &inputs, to, None, &mut workspace),
                    false => layer.prefill(&stream, &inputs, to, None, &mut workspace),
                };
                called.unwrap();
                assert_ones(&stream, &out);
            }
        }
    }
}

/// Lengths, row indices, pages, slots and positions that do not exist.
#[test]
fn what_lies_on_the_device_may_be_anything() {
    let Some((_turn, context)) = device() else {
        return;
    };
    let stream = context.new_stream().unwrap();
    let layer = layer(&stream);
    let (mut own, mut others) = (Buffers::new(&stream), Buffers::new(&stream));
    let wild = [i32::MIN, -1, 41, 1 << 30, i32::MAX];
    for (i, &value) in wild.iter().enumerate() {
        let slots: Vec<i64> = (0..KEYS as i64)
            .map(|t| [i64::MIN, -1, 40 + t, i64::MAX, t << 32][i])
            .collect();
        let copies = [[0, -1], [5, 0], [i64::MAX, 1], [1, i64::MIN], [1 << 32, 0]][i];
        stream
            .memcpy_htod(&[value; PAGES[0]], &mut own.block_table)
            .unwrap();
        stream.memcpy_htod(&[value], &mut own.seqused_k).unwrap();
        stream
            .memcpy_htod(&[wild[(i + 1) % 5]], &mut own.leftpad_k)
            .unwrap();
        stream
            .memcpy_htod(&[wild[(i + 2) % 5]], &mut own.offset)
            .unwrap();
        for cu in [&mut own.cu_seqlens_q, &mut own.cu_seqlens_k] {
            stream.memcpy_htod(&[value, wild[(i + 3) % 5]], cu).unwrap();
        }
        stream.memcpy_htod(&slots, &mut own.slot_mapping).unwrap();
        stream.memcpy_htod(&copies, &mut own.copies).unwrap();
        for (function, _) in ARGUMENTS {
            own.call(function, "none", &mut others, &layer, &stream)
                .unwrap();
            stream
                .synchronize()
                .unwrap_or_else(|error| panic!("{function} with {value}: {error}"));
        }
        let pages = View::new(&own.k, &PAGES).unwrap();
        let row = [1, 1, HEADS, HEAD_DIM];
        let q = View::new(&own.q, &row).unwrap();
        let inputs = Inputs::paged(q, pages, pages, &own.block_table, &own.seqused_k)
            .leftpad_k(&own.leftpad_k)
            .offset(&own.offset);
        let out = ViewMut::new(&mut own.out, &row).unwrap();
        layer
            .decode(&stream, &inputs, out, None, &mut own.workspace)
            .unwrap();
        stream.synchronize().unwrap();
    }
}

#[test]
fn buffers_of_no_elements_are_not_touched() {
    let Some((_turn, context)) = device() else {
        return;
    };
    let stream = context.new_stream().unwrap();
    let layer = layer(&stream);
    let x = ones(&stream, KEYS);
    let (past, none) = (x.slice(x.len()..), x.slice(..0));
    let mut out = stream.alloc_zeros::<f16>(KEYS * ROW).unwrap();
    let mut workspace = stream.alloc_zeros::<u8>(1).unwrap();
    let mut no_workspace = workspace.slice_mut(1..);
    let rows = |rows| [1, rows, HEADS, HEAD_DIM];
    for empty in [&past, &none] {
        // No queries, no keys, no pages.
        let keys = View::new(&x, &rows(KEYS)).unwrap();
        let nothing = View::new(empty, &rows(0)).unwrap();
        let mut end = out.slice_mut(KEYS * ROW..);
        let to = ViewMut::new(&mut end, &rows(0)).unwrap();
        let inputs = Inputs::new(nothing, keys, keys);
        layer
            .forward(&stream, &inputs, to, None, &mut no_workspace)
            .unwrap();
        let to = ViewMut::new(&mut out, &rows(KEYS)).unwrap();
        let inputs = Inputs::new(keys, nothing, nothing);
        layer
            .prefill(&stream, &inputs, to, None, &mut no_workspace)
            .unwrap();
        let found = stream.clone_dtoh(&out).unwrap();
        assert!(found.iter().all(|&x| x == f16::ZERO));
        stream.synchronize().unwrap();
    }
}

/// Sizes whose products overflow, or that 32 bits do not hold.
#[test]
fn sizes_beyond_all_memory_are_errors() {
    let Some((_turn, context)) = device() else {
        return;
    };
    let stream = context.new_stream().unwrap();
    let layer = layer(&stream);
    let x = ones(&stream, KEYS);
    let huge = [1 << 31, 1 << 40, usize::MAX / ROW, usize::MAX];
    for rows in huge {
        assert!(View::new(&x, &[1, rows, HEADS, HEAD_DIM]).is_err());
        assert!(View::new(&x, &[rows, rows, HEADS, HEAD_DIM]).is_err());
        // One row, again and again.
        let shape = [1, rows, HEADS, HEAD_DIM];
        let Ok(keys) = View::strided(&x, &shape, &[0, 0, HEAD_DIM, 1]) else {
            continue;
        };
        let q = View::new(&x, &[1, 1, HEADS, HEAD_DIM]).unwrap();
        let mut out = ones(&stream, 1);
        let to = ViewMut::new(&mut out, &[1, 1, HEADS, HEAD_DIM]).unwrap();
        let mut workspace = stream.alloc_zeros::<u8>(64).unwrap();
        let inputs = Inputs::new(q, keys, keys);
        let error = layer.forward(&stream, &inputs, to, None, &mut workspace);
        assert!(matches!(error, Err(Error::Argument(_))), "{rows} rows");
    }
    assert!(layer.workspace_bytes(usize::MAX, 16, usize::MAX) > 1 << 60);
}
