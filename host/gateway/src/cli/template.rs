//! `backstop init --template`: a configuration to begin with, explained by comments.

use std::path::Path;
use std::process::ExitCode;

use super::{init, terminal};

/// What a configuration is to begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Template {
    /// One server.
    Single,
    /// A server, and another that stands in for it.
    PrimaryBackup,
    /// Models that stand in for one another.
    Models,
    /// Everything that is often needed, with its defaults.
    Full,
}

impl Template {
    fn text(self) -> &'static str {
        match self {
            Self::Single => include_str!("templates/single.toml"),
            Self::PrimaryBackup => include_str!("templates/primary-backup.toml"),
            Self::Models => include_str!("templates/models.toml"),
            Self::Full => include_str!("templates/full.toml"),
        }
    }
}

pub(super) fn run(template: Template, output: &Path) -> anyhow::Result<ExitCode> {
    init::create(output, template.text())?;
    let shown = output.display();
    terminal::complain(&format!(
        "{shown} is written. Put the addresses of your servers in, then: backstop check --config {shown}"
    ));
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use backstop::config::Config;
    use clap::ValueEnum as _;

    use super::*;

    fn loaded(template: Template) -> Config {
        let loaded = Config::parse(template.text(), Path::new("backstop.toml"), &|_| None);
        assert_eq!(loaded.diagnostics, [], "{template:?}");
        loaded.config
    }

    #[test]
    fn every_template_is_right_and_has_a_target() {
        for template in Template::value_variants() {
            let config = loaded(*template);
            assert!(!config.services.is_empty() || !config.models.is_empty());
        }
    }

    #[test]
    fn what_the_full_template_says_is_the_default_where_it_does_not_say_otherwise() {
        let (full, base) = (loaded(Template::Full), Config::default());
        assert_eq!(full.deadline, base.deadline);
        assert_eq!(full.budget, base.budget);
        assert_eq!(full.circuit, base.circuit);
        assert_eq!(full.health, base.health);
        assert_eq!(full.gateway, base.gateway);
        assert_eq!(full.completion, base.completion);
        assert_eq!(full.cache, Some(backstop::config::Cache::default()));
        assert_eq!(full.admin, Some(backstop::config::Admin::default()));
        let written = backstop::retry::RetryPolicies::default();
        let terms = backstop::Terms::of(&full, Path::new("backstop.toml"));
        let now = terms.policies.retry;
        let kind = backstop::Kind::CONNECTION_ERROR;
        assert_eq!(now.of(&kind).backoff, written.of(&kind).backoff);
        assert_eq!(now.default.backoff, written.default.backoff);
        assert_eq!(now.default.max_retries, written.default.max_retries);
    }
}
