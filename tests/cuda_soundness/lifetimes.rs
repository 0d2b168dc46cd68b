//! What calls use while they run.

use super::*;

#[test]
fn layers_may_be_dropped_while_their_calls_run() {
    let Some((_turn, context)) = device() else {
        return;
    };
    let stream = context.new_stream().unwrap();
    let x = ones(&stream, KEYS);
    let mut out = stream.alloc_zeros::<f16>(KEYS * ROW).unwrap();
    let mut pages = [(); 2].map(|()| stream.alloc_zeros::<f16>(KEYS * ROW).unwrap());
    let slots = stream
        .clone_htod(&(0..KEYS as i64).collect::<Vec<_>>())
        .unwrap();
    let mut workspace = stream.alloc_zeros::<u8>(64).unwrap();
    let attended = layer(&stream);
    attend(&attended, &stream, &x, &mut out, &mut workspace).unwrap();
    let [k_pages, v_pages] = &mut pages;
    let new = View::new(&x, &[KEYS, HEADS, HEAD_DIM]).unwrap();
    let appended = layer(&stream);
    appended
        .append(
            &stream,
            new,
            new,
            ViewMut::new(k_pages, &PAGES).unwrap(),
            ViewMut::new(v_pages, &PAGES).unwrap(),
            &slots,
        )
        .unwrap();
    // With the only layers, were they what keeps the kernels loaded.
    drop((attended, appended));
    assert_ones(&stream, &out);
    assert_ones(&stream, &pages[0]);
    assert_ones(&stream, &pages[1]);
}

/// So many layers that slopes are released which no layer has any more, while a call with such slopes has not run yet.
#[test]
fn slopes_are_released_when_nothing_reads_them() {
    let Some((_turn, context)) = device() else {
        return;
    };
    let (stream, maker) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let with_slope = |slope: f32| {
        let attention =
            Attention::new(HEADS, HEADS, HEAD_DIM).slopes(Slopes::per_head(&[slope; HEADS]));
        Layer::new(&maker, attention.build().unwrap()).unwrap()
    };
    let x = ones(&stream, KEYS);
    let mut out = stream.alloc_zeros::<f16>(KEYS * ROW).unwrap();
    let mut workspace = stream.alloc_zeros::<u8>(64).unwrap();
    let before = context.mem_get_info().unwrap().0;
    let called = with_slope(0.125);
    attend(&called, &stream, &x, &mut out, &mut workspace).unwrap();
    drop(called);
    for i in 0..1100 {
        drop(with_slope(1.0 + i as f32));
    }
    assert_ones(&stream, &out);
    // A block of 512 bytes each, were all of them kept.
    let kept = before - context.mem_get_info().unwrap().0;
    assert!(kept < 512 * 1024, "{kept} bytes");
}
