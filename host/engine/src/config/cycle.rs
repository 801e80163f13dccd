//! Fallback routes that lead back to where they began.
//!
//! A route says that a failing operation is replaced by another. Routes that form a ring would send
//! a call round until its caps stop it, so they are found at load, and shown (RULES: loops).

use std::collections::{HashMap, HashSet};
use std::fmt;

/// A ring of declared fallback routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cycle {
    /// What is passed through, the first one again at the end.
    pub path: Vec<String>,
    /// The strategies whose routes make it up, each once, in the order of the path.
    pub strategies: Vec<String>,
}

impl fmt::Display for Cycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.strategies.len() == 1 {
            "strategy"
        } else {
            "strategies"
        };
        write!(
            f,
            "{} ({word}: {})",
            self.path.join(" -> "),
            self.strategies.join(", ")
        )
    }
}

/// Finds a ring in routes of (strategy, source, fallback), or `None` where there is none.
///
/// The walk begins at the sources in the order of their declaration and follows each one's
/// fallbacks in that order, so the answer is the same each time. Names are compared as they are.
pub fn find_cycle<S, O, F>(routes: impl IntoIterator<Item = (S, O, F)>) -> Option<Cycle>
where
    S: Into<String>,
    O: Into<String>,
    F: Into<String>,
{
    let mut names: Vec<String> = Vec::new();
    let mut index: HashMap<String, usize> = HashMap::new();
    let mut edges: Vec<Vec<(usize, String)>> = Vec::new();
    let mut node = |name: String, edges: &mut Vec<Vec<(usize, String)>>| {
        *index.entry(name.clone()).or_insert_with(|| {
            names.push(name);
            edges.push(Vec::new());
            names.len() - 1
        })
    };
    for (strategy, source, fallback) in routes {
        let source = node(source.into(), &mut edges);
        let fallback = node(fallback.into(), &mut edges);
        if let Some(out) = edges.get_mut(source) {
            out.push((fallback, strategy.into()));
        }
    }

    // An explicit stack: a chain as long as a file may hold must not exhaust the thread's own.
    let mut finished: HashSet<usize> = HashSet::new();
    for start in 0..names.len() {
        // Each step: where we stand, the strategy that led here, the next way out to try.
        let mut steps: Vec<(usize, &str, usize)> = vec![(start, "", 0)];
        let mut on_path: HashSet<usize> = HashSet::from([start]);
        while let Some((at, _, next)) = steps.last_mut() {
            let out = edges.get(*at).and_then(|out| out.get(*next));
            *next += 1;
            match out {
                None => {
                    finished.insert(*at);
                    on_path.remove(at);
                    steps.pop();
                }
                Some((to, strategy)) if on_path.contains(to) => {
                    return Some(render(&names, &steps, *to, strategy));
                }
                Some((to, strategy)) if !finished.contains(to) => {
                    on_path.insert(*to);
                    steps.push((*to, strategy, 0));
                }
                Some(_) => {}
            }
        }
    }
    None
}

fn render(names: &[String], steps: &[(usize, &str, usize)], closing: usize, by: &str) -> Cycle {
    let name = |at: usize| names.get(at).cloned().unwrap_or_default();
    let first = steps
        .iter()
        .position(|(at, ..)| *at == closing)
        .unwrap_or(0);
    let ring = steps.get(first..).unwrap_or_default();
    let mut path: Vec<String> = ring.iter().map(|(at, ..)| name(*at)).collect();
    path.push(name(closing));
    let mut strategies: Vec<String> = Vec::new();
    for strategy in ring
        .iter()
        .skip(1)
        .map(|(_, strategy, _)| *strategy)
        .chain([by])
    {
        if !strategies.iter().any(|known| known == strategy) {
            strategies.push(strategy.to_owned());
        }
    }
    Cycle { path, strategies }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_ring_is_shown_with_the_strategies_that_make_it() {
        let routes = [
            ("a", "search", "search_lite"),
            ("b", "search_lite", "search"),
        ];
        let cycle = find_cycle(routes).unwrap();
        assert_eq!(
            cycle.to_string(),
            "search -> search_lite -> search (strategies: a, b)"
        );
    }

    #[test]
    fn an_operation_that_falls_back_to_itself_is_a_ring() {
        assert_eq!(
            find_cycle([("a", "x", "x")]).unwrap().to_string(),
            "x -> x (strategy: a)"
        );
    }

    #[test]
    fn the_way_into_a_ring_is_no_part_of_it() {
        let routes = [
            ("a", "start", "b"),
            ("b", "b", "c"),
            ("b", "c", "d"),
            ("c", "d", "b"),
        ];
        assert_eq!(
            find_cycle(routes).unwrap().to_string(),
            "b -> c -> d -> b (strategies: b, c)"
        );
    }

    #[test]
    fn the_first_ring_in_the_order_of_declaration_is_found() {
        let routes = [
            ("z", "p", "q"),
            ("z", "q", "p"),
            ("a", "a", "b"),
            ("a", "b", "a"),
        ];
        assert_eq!(find_cycle(routes).unwrap().path, ["p", "q", "p"]);
    }

    #[test]
    fn two_ways_to_one_place_are_no_ring() {
        assert_eq!(
            find_cycle([
                ("a", "x", "y"),
                ("a", "x", "z"),
                ("a", "y", "w"),
                ("a", "z", "w")
            ]),
            None
        );
    }

    #[test]
    fn a_chain_of_any_length_is_walked() {
        let chain = (0..200_000).map(|n| ("s", n.to_string(), (n + 1).to_string()));
        assert_eq!(find_cycle(chain), None);
    }

    /// Reachability by repeated joining: slow and obvious.
    fn naive_has_cycle(routes: &[(u8, u8)]) -> bool {
        let mut reach: HashSet<(u8, u8)> = routes.iter().copied().collect();
        loop {
            let joined: HashSet<(u8, u8)> = reach
                .iter()
                .flat_map(|(a, b)| {
                    reach
                        .iter()
                        .filter(move |(c, _)| c == b)
                        .map(move |(_, d)| (*a, *d))
                })
                .chain(reach.iter().copied())
                .collect();
            if joined.len() == reach.len() {
                return reach.iter().any(|(a, b)| a == b);
            }
            reach = joined;
        }
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_naive_search(routes in prop::collection::vec((0u8..7, 0u8..7), 0..10)) {
            let found = find_cycle(routes.iter().map(|(a, b)| ("s", a.to_string(), b.to_string())));
            prop_assert_eq!(found.is_some(), naive_has_cycle(&routes));
            if let Some(cycle) = found {
                prop_assert_eq!(cycle.path.first(), cycle.path.last());
                for pair in cycle.path.windows(2) {
                    let declared = routes.iter().any(|(a, b)| [a.to_string(), b.to_string()] == pair);
                    prop_assert!(declared, "{:?} is no declared route", pair);
                }
            }
        }
    }
}
