//! candle-transformers' `jina_bert`, as published, beside the encoder here: processor time and peak memory, on the same weights.
//!
//! Each side runs in processes of its own, which this one starts in turns. The time is the processor's, of all threads,
//! which waiting for other programs does not add to; the memory is the most that a process had at once, its loading included.

mod side;
mod weights;

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use flash_alibi::Horizon;
use flash_alibi_models::normalised;
use side::{Measured, Side};
use weights::Size;

/// What is compared.
#[derive(clap::Args)]
pub struct Compare {
    /// Runs candle-transformers' jina_bert beside this encoder, on random weights, and prints a table. On Linux.
    #[arg(long)]
    compare: bool,
    /// Of `--compare`: the shape of which published model.
    #[arg(long, value_enum, value_name = "SIZE", default_value_t = Size::Small)]
    size: Size,
    /// Of `--compare`: how often each batch is computed; the least processor time counts.
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// Of `--compare`: the tokens of each text of a batch; may be given several times.
    #[arg(long, value_name = "N,...", value_parser = Batch::parse, default_values = BATCHES)]
    batch: Vec<Batch>,
    /// Computes one side and prints what was measured: what `--compare` starts.
    #[arg(long, value_enum, hide = true, requires = "folder")]
    side: Option<Side>,
    /// The weights of `--side`.
    #[arg(long, hide = true)]
    folder: Option<std::path::PathBuf>,
}

const BATCHES: [&str; 5] = [
    "512",
    "2048",
    "8192",
    "8,16,32,64,128,256,384,512",
    "2048,500,200,100",
];

/// The tokens of each text.
#[derive(Clone)]
struct Batch(Vec<usize>);

impl Batch {
    fn parse(text: &str) -> Result<Self> {
        let lengths = text.split(',').map(|length| {
            let tokens: usize = length.trim().parse().context(length.to_owned())?;
            ensure!(
                (1..=weights::LONGEST).contains(&tokens),
                "found {tokens} tokens, expected 1 to {}",
                weights::LONGEST
            );
            Ok(tokens)
        });
        Ok(Self(lengths.collect::<Result<_>>()?))
    }

    fn to_argument(&self) -> String {
        let lengths: Vec<String> = self.0.iter().map(usize::to_string).collect();
        lengths.join(",")
    }
}

impl Compare {
    /// Whether any of this was asked for.
    pub fn asked(&self) -> bool {
        self.compare || self.side.is_some()
    }
}

pub fn run(arguments: &Compare, horizon: Horizon) -> Result<()> {
    if let (Some(side), Some(folder)) = (arguments.side, &arguments.folder) {
        for batch in &arguments.batch {
            let measured = side::measure(side, folder, &batch.0, horizon)?;
            println!("{}", serde_json::to_string(&measured)?);
        }
        return Ok(());
    }
    ensure!(arguments.rounds > 0, "rounds: found 0, expected at least 1");
    let folder = tempfile::tempdir()?;
    weights::write(arguments.size, folder.path())?;
    println!(
        "| tokens | candle-transformers: loading, s | computing, s | peak, MB | here: loading, s | computing, s | peak, MB | computing: times less | memory: times less | largest difference | least cosine |\n|---|---|---|---|---|---|---|---|---|---|---|"
    );
    for batch in &arguments.batch {
        let several = batch.0.len() > 1;
        let mut sides = vec![Side::Ours, Side::Padded];
        if several {
            sides.push(Side::OneByOne);
        }
        let mut found: Vec<Option<Measured>> = sides.iter().map(|_| None).collect();
        for _ in 0..arguments.rounds {
            for (&side, found) in sides.iter().zip(&mut found) {
                let next = start(side, folder.path(), batch, horizon)?;
                *found = Some(match found.take() {
                    None => next,
                    Some(least) => least.least(next),
                });
            }
        }
        let mut found = found.into_iter().flatten();
        let ours = found.next().context("nothing was measured")?;
        for (theirs, side) in found.zip(&sides[1..]) {
            let name = match (several, side) {
                (false, _) => batch.to_argument(),
                (true, Side::OneByOne) => format!("{}, theirs one by one", batch.to_argument()),
                (true, _) => format!("{}, theirs padded", batch.to_argument()),
            };
            println!("{}", row(&name, &theirs, &ours)?);
        }
    }
    Ok(())
}

/// Measures one side in a process of its own.
fn start(side: Side, folder: &Path, batch: &Batch, horizon: Horizon) -> Result<Measured> {
    let output = Command::new(env::current_exe()?)
        .args(["--side", side.name(), "--horizon", &horizon.to_string()])
        .args(["--batch", &batch.to_argument()])
        .arg("--folder")
        .arg(folder)
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(
        output.status.success(),
        "{}: {}: the process ended with {}",
        side.name(),
        batch.to_argument(),
        output.status
    );
    serde_json::from_slice(&output.stdout).context(side.name())
}

fn row(name: &str, theirs: &Measured, ours: &Measured) -> Result<String> {
    let (difference, cosine) = agreement(theirs, ours)?;
    let megabytes = |measured: &Measured| measured.peak_bytes as f64 / 1e6;
    Ok(format!(
        "| {name} | {:.2} | {:.2} | {:.0} | {:.2} | {:.2} | {:.0} | {:.1} | {:.1} | {difference:.1e} | {cosine:.7} |",
        theirs.load_seconds,
        theirs.seconds,
        megabytes(theirs),
        ours.load_seconds,
        ours.seconds,
        megabytes(ours),
        theirs.seconds / ours.seconds,
        megabytes(theirs) / megabytes(ours),
    ))
}

/// The largest difference between embeddings, and the least cosine between two of one text.
fn agreement(theirs: &Measured, ours: &Measured) -> Result<(f32, f32)> {
    let device = &candle_core::Device::Cpu;
    let theirs = candle_core::Tensor::new(theirs.embeddings.clone(), device)?;
    let ours = candle_core::Tensor::new(ours.embeddings.clone(), device)?;
    let difference = (&theirs - &ours)?.abs()?.flatten_all()?.max(0)?;
    let cosines = (normalised(&theirs)? * normalised(&ours)?)?.sum(1)?;
    Ok((difference.to_scalar()?, cosines.min(0)?.to_scalar()?))
}
