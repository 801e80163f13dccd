//! What differs between two configurations, in words.

use std::collections::BTreeSet;

use backstop::config::{Config, Discovery, Model, Operation, Pattern, Service, Strategy};

/// What one version changes of another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// One line each.
    pub(super) all: Vec<String>,
    /// Those of them that hold only when the program is started again.
    pub(super) needs_restart: Vec<String>,
}

impl Changes {
    /// `may_have_models`: there is a front for models.
    pub(super) fn between(old: &Config, new: &Config, may_have_models: bool) -> Self {
        let mut changes = Self::default();
        let all = &mut changes.all;
        named(
            all,
            "service",
            &old.services,
            &new.services,
            |s: &Service| &s.name,
        );
        named(all, "model", &old.models, &new.models, |m: &Model| &m.name);
        named(
            all,
            "discovery",
            &old.discoveries,
            &new.discoveries,
            |d: &Discovery| &d.name,
        );
        named(
            all,
            "strategy",
            &old.strategies,
            &new.strategies,
            |s: &Strategy| &s.name,
        );
        named(
            all,
            "operation",
            &old.operations,
            &new.operations,
            |o: &Operation| &o.matches,
        );
        named(
            all,
            "pattern",
            &old.patterns,
            &new.patterns,
            |p: &Pattern| &p.name,
        );
        let kinds: BTreeSet<_> = old
            .retry
            .kinds
            .keys()
            .chain(new.retry.kinds.keys())
            .collect();
        let differing = kinds
            .into_iter()
            .filter(|kind| old.retry.kinds.get(*kind) != new.retry.kinds.get(*kind));
        all.extend(differing.map(|kind| format!("[retry.{kind}] changed")));
        let folder = old.plugins != new.plugins || old.plugins_lock != new.plugins_lock;
        for (section, differs) in [
            ("[retry.default]", old.retry.default != new.retry.default),
            ("plugins", folder),
            ("state", old.state != new.state),
            ("stock", old.stock != new.stock),
            ("[health]", old.health != new.health),
            ("[circuit]", old.circuit != new.circuit),
            ("[budget]", old.budget != new.budget),
            ("[deadline]", old.deadline != new.deadline),
            ("[cache]", old.cache != new.cache),
            ("[completion]", old.completion != new.completion),
            ("[gateway]", old.gateway != new.gateway),
            ("[admin]", old.admin != new.admin),
            ("[events]", old.events != new.events),
            ("[telemetry]", old.telemetry != new.telemetry),
        ] {
            if differs {
                all.push(format!("{section} changed"));
            }
        }
        let (before, now) = (&old.gateway, &new.gateway);
        for (key, fixed) in [
            ("[gateway] listen", before.listen != now.listen),
            ("[gateway] path", before.path != now.path),
            (
                "[gateway] tls_certificate, tls_key",
                (&before.tls_certificate, &before.tls_key) != (&now.tls_certificate, &now.tls_key),
            ),
            (
                "[gateway] max_connections, max_header, idle",
                (before.max_connections, before.max_header, before.idle)
                    != (now.max_connections, now.max_header, now.idle),
            ),
            (
                "[completion] path",
                old.completion.path != new.completion.path,
            ),
            ("[admin]", old.admin != new.admin),
            ("[events]", old.events != new.events),
            ("[telemetry]", old.telemetry != new.telemetry),
            (
                "[[model]]: the first one",
                !may_have_models && !new.models.is_empty(),
            ),
        ] {
            if fixed {
                changes.needs_restart.push(key.to_owned());
            }
        }
        changes
    }
}

/// What differs between two lists of named things.
fn named<T: PartialEq>(
    changes: &mut Vec<String>,
    what: &str,
    old: &[T],
    new: &[T],
    name: impl Fn(&T) -> &str,
) {
    let of = |list: &'_ [T], wanted: &str| list.iter().position(|entry| name(entry) == wanted);
    let before = changes.len();
    for entry in new {
        let there = of(old, name(entry)).and_then(|at| old.get(at));
        match there {
            None => changes.push(format!("{what} {:?} added", name(entry))),
            Some(there) if there != entry => {
                changes.push(format!("{what} {:?} changed", name(entry)));
            }
            Some(_) => {}
        }
    }
    let gone = old.iter().filter(|entry| of(new, name(entry)).is_none());
    changes.extend(gone.map(|entry| format!("{what} {:?} removed", name(entry))));
    if changes.len() == before && old != new {
        changes.push(format!("{what}: the order changed"));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn changes(old: &str, new: &str) -> Changes {
        let config = |text: &str| {
            let loaded = Config::parse(text, Path::new("/t.toml"), &|_| None);
            assert!(!loaded.has_errors(), "{:?}", loaded.diagnostics);
            loaded.config
        };
        Changes::between(&config(old), &config(new), false)
    }

    fn service(name: &str, rest: &str) -> String {
        format!("[[service]]\nname = '{name}'\nurl = 'http://{name}.example/mcp'\n{rest}\n")
    }

    #[test]
    fn each_entry_and_each_section_that_differs_is_named_once() {
        let old = format!(
            "[retry.TimeoutError]\nmax_retries = 1\n{}{}{}",
            service("a", ""),
            service("b", ""),
            service("c", "")
        );
        let new = format!(
            "[retry.TeamQuota]\nmax_retries = 1\n[budget]\nratio = 0.1\n{}{}{}\
             [[strategy]]\nplugin = 'retry'\npriority = 7\n\
             [[pattern]]\nname = 'p'\nmessage = 'x'\nkind = 'K'\n",
            service("a", ""),
            service("c", "weight = 2"),
            service("d", "")
        );
        let changes = changes(&old, &new);
        assert_eq!(
            changes.all,
            [
                "service \"c\" changed",
                "service \"d\" added",
                "service \"b\" removed",
                "strategy \"retry\" added",
                "pattern \"p\" added",
                "[retry.TeamQuota] changed",
                "[retry.TimeoutError] changed",
                "[budget] changed",
            ]
        );
        assert_eq!(changes.needs_restart, [""; 0]);
    }

    #[test]
    fn the_order_of_entries_is_told_where_nothing_else_differs() {
        let (a, b) = (service("a", ""), service("b", ""));
        let changed = changes(&format!("{a}{b}"), &format!("{b}{a}"));
        assert_eq!(changed.all, ["service: the order changed"]);
        assert_eq!(
            changes(&a, &format!("# said anew\n{a}")),
            Changes::default()
        );
    }

    #[test]
    fn what_holds_only_after_a_restart_is_told_apart() {
        let new = "[gateway]\nlisten = '127.0.0.1:1'\nmixed_schemas = true\n[completion]\npath = '/x'\n\
                   [[model]]\nname = 'm'\nbase_url = 'http://m.example/v1'\nmodel = 'm'\n";
        let changes = changes(&service("a", ""), new);
        assert_eq!(
            changes.needs_restart,
            [
                "[gateway] listen",
                "[completion] path",
                "[[model]]: the first one"
            ]
        );
        assert!(changes.all.contains(&"[gateway] changed".to_owned()));
    }
}
