//! Memory grows with the number of tokens, not with its square.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use flash_alibi::{Attention, Inputs, View, cpu};

/// Counts what is allocated.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does the work; the counts change nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(now, Relaxed);
        // SAFETY: as required of the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as required of the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The window only saves time: the same tiles and blocks are held as without.
#[test]
fn of_65536_tokens_is_at_most_twice_the_inputs_and_outputs() {
    let (tokens, head_dim) = (65_536, 64);
    let attention = Attention::new(1, 1, head_dim)
        .window(Some(300), None)
        .build()
        .unwrap();
    let data = vec![0.25f32; tokens * head_dim];
    let view = View::new(&data, &[1, tokens, 1, head_dim]).unwrap();
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);

    let output = cpu::attend(&attention, &Inputs::new(view, view, view)).unwrap();

    let made = PEAK.load(Relaxed) - before;
    let outputs = size_of_val(&output.out[..]) + size_of_val(&output.lse[..]);
    assert!(
        made >= outputs,
        "the peak of {made} bytes misses the outputs' {outputs}"
    );
    // q, k and v are one buffer here; as buffers of their own they would be three of these.
    let inputs = 3 * size_of_val(&data[..]);
    assert!(
        inputs + made <= 2 * (inputs + outputs),
        "{made} bytes beside inputs of {inputs}"
    );
    // In truth it is the outputs and a few tiles a thread.
    assert!(
        made - outputs <= 16 << 20,
        "{} bytes of scratch",
        made - outputs
    );
}
