//! New keys and values in a cache.

use flash_alibi::Layout;
use flash_alibi::plan::{Append, Dtype};

#[test]
fn radii_are_begun_before_they_are_raised() {
    let new = |shape: &[usize]| Layout::contiguous("k", shape).unwrap();
    let (k, pages) = (new(&[500, 3, 24]), new(&[10, 16, 3, 24]));
    let launches = |append: Append| -> Vec<_> {
        let launches = append.launches().iter();
        launches
            .map(|launch| (launch.kernel, launch.grid))
            .collect()
    };
    let plain = Append::new(&k, &k, &pages, &pages).unwrap();
    assert_eq!(
        launches(plain),
        [("append", (500u32 * 3 * 3).div_ceil(256))]
    );
    let kept = Append::with_radii(Dtype::Bf16, &k, &k, &pages, &pages).unwrap();
    // The 3 chunks of a head have 4 threads.
    assert_eq!(
        launches(kept),
        [
            ("restart_radii", (500u32 * 3).div_ceil(256)),
            ("append_bf16", (500u32 * 3 * 4).div_ceil(256)),
        ]
    );
    let none = new(&[0, 3, 24]);
    let none = Append::with_radii(Dtype::F16, &none, &none, &pages, &pages).unwrap();
    assert_eq!(launches(none), []);
}

#[test]
fn new_keys_that_do_not_fit_the_pages() {
    let new = |shape: &[usize]| Layout::contiguous("k", shape).unwrap();
    let pages = new(&[10, 16, 2, 64]);
    let append = |k: &Layout, v: &Layout, k_pages: &Layout, v_pages: &Layout| {
        Append::new(k, v, k_pages, v_pages).unwrap_err().to_string()
    };
    let k = new(&[5, 2, 64]);
    assert_eq!(
        append(&new(&[5, 2, 60]), &k, &pages, &pages),
        "k: found shape [5, 2, 60], expected [tokens, heads_k, a multiple of 8], up to 2147483647 tokens"
    );
    assert_eq!(
        append(&k, &new(&[4, 2, 64]), &pages, &pages),
        "v: found shape [4, 2, 64], expected [5, 2, 64], as k"
    );
    assert_eq!(
        append(&k, &k, &new(&[10, 16, 4, 64]), &pages),
        "k_pages: found shape [10, 16, 4, 64], expected [pages, page_size, 2, 64]"
    );
    assert_eq!(
        append(&k, &k, &pages, &new(&[10, 8, 2, 64])),
        "v_pages: found shape [10, 8, 2, 64], expected [10, 16, 2, 64], as k_pages"
    );
    let overlapping = Layout::new("k", &[10, 16, 2, 64], &[0, 128, 64, 1]).unwrap();
    assert!(
        append(&k, &k, &overlapping, &pages).starts_with("k_pages: found strides [0, 128, 64, 1]")
    );
    assert!(Append::new(&k, &k, &pages, &pages).is_ok());
}
