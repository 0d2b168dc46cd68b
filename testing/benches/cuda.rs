//! Prefill and decoding on a GPU: see `flash_alibi_testing::bench`.

fn main() -> anyhow::Result<()> {
    flash_alibi_testing::bench::run()
}
