//! Engines, made from configurations as the program makes them.

use std::fmt::Write;
use std::path::Path;
use std::sync::LazyLock;

use backstop::call::Verdict;
use backstop::config::{Config, Diagnostic};
use backstop::plugins::StrategySet;
use backstop::strategy::component::{Runtime, RuntimeOptions};
use backstop::{CallError, Engine, Outcome, assemble_with};

use crate::plugins;

/// The runtime of this test program. Compiled components are kept beside what cargo keeps.
pub static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let cache = plugins::target_dir().join("wasm-cache");
    std::fs::create_dir_all(&cache).unwrap();
    Runtime::new(RuntimeOptions::default().with_cache(cache)).unwrap()
});

/// Where the stock strategies come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stock {
    /// From inside the library.
    Prebuilt,
    /// Built from source just now, out of a plugin folder.
    Rebuilt,
}

/// Services of the group `g`, the first with the highest priority, all before any model.
pub fn services(names: &[&str]) -> String {
    let mut text = String::new();
    for (at, name) in names.iter().enumerate() {
        writeln!(
            text,
            "[[service]]\nname = {name:?}\ngroup = \"g\"\nurl = \"http://127.0.0.1:9/{name}\"\npriority = {}",
            10_usize.saturating_sub(at)
        )
        .unwrap();
    }
    text
}

/// A model of the group `g`.
pub fn model(name: &str) -> String {
    format!(
        "[[model]]\nname = {name:?}\ngroup = \"g\"\nbase_url = \"http://127.0.0.1:9\"\nmodel = {name:?}\n"
    )
}

/// What came of starting with a configuration.
pub struct Started {
    pub engine: Engine,
    pub set: StrategySet,
    /// Of the file, then of what it names.
    pub diagnostics: Vec<Diagnostic>,
}

impl Started {
    /// The names of the strategies that take part, in the order they are asked in.
    pub fn strategies(&self) -> Vec<String> {
        let list = self.engine.strategies().list();
        list.iter().map(|entry| entry.name().to_string()).collect()
    }
}

/// Starts with a configuration whose file would lie in `folder`.
pub async fn start_in(folder: &Path, text: &str) -> Started {
    let file = folder.join("backstop.toml");
    let loaded = Config::parse(text, &file, &|_| None);
    let builder = Engine::builder().random(backstop::random::seeded(1));
    let assembled = assemble_with(builder, &loaded.config, &file, &RUNTIME)
        .await
        .unwrap();
    let mut diagnostics = loaded.diagnostics;
    diagnostics.extend(assembled.diagnostics);
    Started {
        engine: assembled.engine,
        set: assembled.strategies,
        diagnostics,
    }
}

/// Starts with a faultless configuration and the six stock strategies.
pub async fn start(stock: Stock, text: &str) -> Engine {
    let text = match stock {
        Stock::Prebuilt => text.to_owned(),
        Stock::Rebuilt => format!(
            "stock = false\nplugins = {:?}\n{text}",
            plugins::rebuilt_stock()
        ),
    };
    let started = start_in(plugins::root(), &text).await;
    assert!(started.diagnostics.is_empty(), "{:#?}", started.diagnostics);
    started.engine
}

/// A strategy that was asked: its name, what came of it, and the reason given for that.
pub type Asked = (String, &'static str, String);

/// Every strategy asked.
pub fn steps(trouble: &backstop::call::Trouble) -> Vec<Asked> {
    let step = |step: &backstop::call::Step| {
        let (verdict, said) = match &step.verdict {
            Verdict::Declined => ("declined", String::new()),
            Verdict::Faulted { fault } => ("faulted", fault.clone()),
            Verdict::Refused { refusal, .. } => ("refused", refusal.clone()),
            Verdict::Taken { reason, .. } => ("taken", reason.clone()),
            _ => ("other", String::new()),
        };
        (step.strategy.to_string(), verdict, said)
    };
    trouble.steps.iter().map(step).collect()
}

/// The steps of a call that was saved.
pub fn steps_of<A>(outcome: &Outcome<A>) -> Vec<Asked> {
    outcome.trouble.as_deref().map(steps).unwrap_or_default()
}

/// The strategies whose actions were carried out, in order.
pub fn taken(steps: &[Asked]) -> Vec<&str> {
    let taken = steps.iter().filter(|(_, verdict, _)| *verdict == "taken");
    taken.map(|(name, ..)| name.as_str()).collect()
}

/// The strategies whose actions were carried out in a call that failed.
pub fn taken_in(error: &CallError) -> Vec<String> {
    let steps = steps(&error.trouble);
    taken(&steps).into_iter().map(Into::into).collect()
}
