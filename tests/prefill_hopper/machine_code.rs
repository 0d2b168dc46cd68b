//! What the machine code of sm_90a holds, as `cuobjdump -sass` prints it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use flash_alibi::kernels;

/// Of each kernel, its instructions: the addresses, and the words.
type Kernels = BTreeMap<String, Vec<(u64, Vec<String>)>>;

fn read(sass: &str) -> Kernels {
    let (mut kernels, mut of_arch, mut name) = (Kernels::new(), false, String::new());
    for line in sass.lines() {
        let line = line.trim();
        if let Some(arch) = line.strip_prefix("arch = ") {
            of_arch = arch == "sm_90a";
        } else if let Some(found) = line.strip_prefix("Function : ") {
            name = found.into();
        } else if let Some((address, rest)) = line
            .strip_prefix("/*")
            .and_then(|rest| rest.split_once("*/"))
            && let (Ok(address), true) = (u64::from_str_radix(address, 16), of_arch)
        {
            let text = rest.split(';').next().unwrap_or_default();
            let words = text
                .split_whitespace()
                .filter(|word| !word.starts_with('@'));
            let words = words.map(|word| word.trim_end_matches(',').to_owned());
            kernels
                .entry(name.clone())
                .or_default()
                .push((address, words.collect()));
        }
    }
    kernels
}

/// The shortest innermost loop with the most products: that of the tiles that all rows see.
fn steady_loop(code: &[(u64, Vec<String>)]) -> Vec<&[String]> {
    let within = |(first, last): (u64, u64)| {
        let way = (code.iter())
            .filter(move |(at, words)| (first..=last).contains(at) && !words.is_empty());
        way.map(|(_, words)| &words[..])
    };
    let products = |span| {
        within(span)
            .filter(|words| words[0].starts_with("HGMMA"))
            .count()
    };
    let back = |(address, words): &(u64, Vec<String>)| {
        let target = words
            .last()
            .filter(|_| words[0] == "BRA")?
            .strip_prefix("0x")?;
        let target = u64::from_str_radix(target, 16).ok()?;
        (target < *address).then_some((target, *address))
    };
    let mut loops: Vec<(u64, u64)> = code
        .iter()
        .filter(|(_, words)| !words.is_empty())
        .filter_map(back)
        .collect();
    loops.retain(|&span| products(span) > 0);
    let all = loops.clone();
    // Neither around another, nor the way back from code that lies elsewhere into the middle of one.
    loops.retain(|one| {
        let others = || all.iter().filter(|other| *other != one);
        others().all(|other| one.0 > other.0 || one.1 < other.1)
            && others().all(|other| one.0 < other.0 || one.0 > other.1 || one.1 <= other.1)
    });
    let most = loops
        .iter()
        .map(|&span| products(span))
        .max()
        .expect("a loop with products");
    let ways = loops
        .into_iter()
        .filter(|&span| products(span) == most)
        .map(|span| within(span).collect());
    ways.min_by_key(Vec::len).expect("there is one")
}

#[test]
fn the_steady_loop_has_what_the_method_needs() {
    let nvcc = PathBuf::from(env::var_os("NVCC").expect("NVCC is set by `cargo xtask test`"));
    let kernel = kernels::named("sm90/prefill").unwrap();
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sm90-prefill.fatbin");
    fs::write(&file, kernel.fatbin).unwrap();
    let output = Command::new(nvcc.with_file_name("cuobjdump"))
        .arg("-sass")
        .arg(&file)
        .output()
        .unwrap();
    let kernels = read(&String::from_utf8_lossy(&output.stdout));
    // At most what FlashAttention-3 executes, where it has such tiles, and a multiply-add for each score that a lane has.
    for (head_dim, keys, most) in [
        (32, 128, None),
        (64, 128, Some(425 + 64)),
        (80, 112, None),
        (96, 96, None),
        (112, 128, None),
        (128, 128, Some(469 + 64)),
        (192, 112, Some(491 + 56)),
        (256, 80, None),
    ] {
        // With a horizon a round also reads which tile it has, and leaves maxima where they have grown.
        for (reach, dtype, more) in [
            ("prefill", "f16", 0),
            ("prefill", "bf16", 0),
            ("horizon", "f16", 13),
            ("horizon", "bf16", 13),
        ] {
            let name = format!("wgmma_{reach}_{dtype}_d{head_dim}");
            let Some(code) = kernels.get(&name) else {
                // A build for other architectures.
                assert!(kernels.is_empty(), "{name} is not in {:?}", kernels.keys());
                return;
            };
            let way = steady_loop(code);
            let count = |name: &str| {
                way.iter()
                    .filter(|words| words[0].split('.').next() == Some(name))
                    .count()
            };
            let scores = keys / 2;
            assert_eq!(count("HGMMA"), head_dim / 16 + keys / 16, "{name}");
            assert_eq!(count("MUFU"), scores + 2, "{name}");
            assert_eq!(count("FFMA"), 2 * scores + 4, "{name}");
            // The wait for S, and the one for O.
            let waits = way
                .iter()
                .filter(|words| words[0].starts_with("WARPGROUP.DEPBAR"));
            assert_eq!(waits.count(), 2, "{name}");
            // Weights are made while O is under way: the wait for it begins the loop.
            let place =
                |of: &dyn Fn(&[String]) -> bool| way.iter().position(|words| of(words)).unwrap();
            let wait =
                place(&|words| words[0].starts_with("WARPGROUP.DEPBAR") && words[2] == "0x0");
            assert!(
                wait < place(&|words| words[0].starts_with("HGMMA")),
                "{name}"
            );
            assert!(
                wait < place(&|words| words[0].starts_with("MUFU")),
                "{name}"
            );
            let fits = most.is_none_or(|most| way.len() <= most + more);
            assert!(fits, "{name}: {} instructions", way.len());
            // Where no maximum has grown, the output is not multiplied: a branch goes around.
            assert_eq!(count("FMUL"), head_dim / 2 + 2, "{name}");
            let takes = code.iter().filter(|(_, words)| {
                words
                    .first()
                    .is_some_and(|word| word.starts_with("USETMAXREG"))
            });
            assert_eq!(takes.count(), 2, "{name}");
        }
    }
}
