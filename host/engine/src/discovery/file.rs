//! Targets in a file that is watched.

use std::path::{Path, PathBuf};

use super::{FileText, FileWatch, Page, Targets};
use crate::config::Config;

/// Reads the file again and again.
pub(super) async fn follow(file: PathBuf, mut page: Page) {
    let mut watch = FileWatch::new(file.clone());
    loop {
        let text = watch.next().await;
        take(&file, &text, &mut page);
    }
}

fn take(file: &Path, text: &FileText, page: &mut Page) {
    let text = match text {
        Ok(text) => text,
        Err(reason) => return page.refuse(reason),
    };
    let loaded = Config::parse_targets(text, file, &|name| std::env::var(name).ok());
    let (errors, warnings): (Vec<_>, Vec<_>) = loaded
        .diagnostics
        .iter()
        .partition(|diagnostic| diagnostic.is_error());
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    if errors.is_empty() {
        page.write(Targets {
            services: loaded.config.services,
            models: loaded.config.models,
        });
        return;
    }
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    page.refuse(&errors.join("; "));
}
