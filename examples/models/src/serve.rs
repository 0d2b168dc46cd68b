//! Continuous batching: requests join the batch when they arrive and there are pages for them, and leave it when they are
//! done. No scheduler to imitate, but what one does with the cache.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flash_alibi::SequenceId;
use serde::Deserialize;

use crate::model::Model;
use crate::tokenizer::{TextStream, Tokenizer};

/// A line of the trace.
#[derive(Debug, Clone, Deserialize)]
pub struct Request {
    /// The step before which it arrives. A step adds a token to every running sequence.
    pub arrival: usize,
    /// What is continued.
    pub prompt: String,
    /// How many tokens to add at most.
    pub tokens: usize,
}

/// What serving a trace gave, and what it took.
#[derive(Debug, Default)]
pub struct Report {
    /// What was added to each prompt, in the order of the requests.
    pub texts: Vec<String>,
    /// Calls of the model.
    pub steps: usize,
    /// Tokens of all prompts.
    pub prompt_tokens: usize,
    /// Tokens that were added.
    pub new_tokens: usize,
    /// The most sequences that ran together, and the most pages that they had.
    pub most_sequences: usize,
    /// The most pages that were in use.
    pub most_pages: usize,
    /// From the first step to the last.
    pub elapsed: Duration,
}

/// A request that is being served.
struct Running<'a> {
    request: usize,
    sequence: SequenceId,
    /// What the model reads next: the prompt, then the last token.
    input: Vec<u32>,
    left: usize,
    /// The pages that it takes when it is done. A sequence that has started is never without.
    pages: usize,
    stream: TextStream<'a>,
}

/// Serves the requests, which are in the order of their arrival, from a cache of `pages` pages of `page_size` tokens.
pub fn serve(
    model: &Model,
    tokenizer: &Tokenizer,
    requests: &[Request],
    pages: usize,
    page_size: usize,
) -> Result<Report> {
    let mut cache = model.cache(pages, page_size)?;
    let mut waiting: VecDeque<usize> = (0..requests.len()).collect();
    let mut running: Vec<Running> = Vec::new();
    let mut report = Report {
        texts: vec![String::new(); requests.len()],
        ..Report::default()
    };
    let start = Instant::now();
    let mut now = 0;
    while !(waiting.is_empty() && running.is_empty()) {
        while let Some(&request) = waiting.front() {
            let Request {
                arrival,
                prompt,
                tokens,
            } = &requests[request];
            let input = tokenizer.encode(prompt)?;
            ensure!(!input.is_empty(), "request {request}: the prompt is empty");
            let needed = (input.len() + tokens).div_ceil(page_size);
            ensure!(
                needed <= pages,
                "request {request}: found {pages} pages, expected at least {needed}"
            );
            let reserved: usize = running.iter().map(|r| r.pages).sum();
            if *arrival > now || reserved + needed > pages {
                break;
            }
            waiting.pop_front();
            report.prompt_tokens += input.len();
            running.push(Running {
                request,
                sequence: cache.pages.create(),
                stream: tokenizer.stream(&input),
                input,
                left: *tokens,
                pages: needed,
            });
        }
        for done in running.extract_if(.., |r| r.left == 0) {
            report.texts[done.request] += &done.stream.finish()?;
        }
        if running.is_empty() {
            now += 1;
            continue;
        }

        let batch: Vec<_> = running.iter().map(|r| (r.sequence, &r.input[..])).collect();
        let hidden = model
            .forward(&batch, &mut cache)
            .with_context(|| format!("step {now}"))?;
        report.steps += 1;
        report.most_sequences = report.most_sequences.max(running.len());
        report.most_pages = report.most_pages.max(cache.pages.used_pages());

        let mut rows = 0;
        let ends = running.iter().map(|r| {
            rows += r.input.len() as u32;
            rows - 1
        });
        let next = model.greedy(&hidden, &ends.collect::<Vec<_>>())?;
        for (r, token) in running.iter_mut().zip(next) {
            if model.end_tokens().contains(&token) {
                r.left = 0;
            } else {
                report.texts[r.request] += &r.stream.push(token)?;
                report.new_tokens += 1;
                r.left -= 1;
                r.input = vec![token];
            }
            if r.left == 0 {
                cache.pages.free(r.sequence)?;
            }
        }
        now += 1;
    }
    ensure!(cache.pages.used_pages() == 0, "pages were lost");
    report.elapsed = start.elapsed();
    Ok(report)
}
