//! One picture of a report: bars for what is compared, lines for what grows. Both axes of a curve and the
//! length of a bar are logarithmic.

use std::fmt::Write as _;

use crate::measure::Sample;
use crate::scale::Curve;

const WIDTH: f64 = 860.0;
const LABEL: f64 = 230.0;
const BAR: f64 = 20.0;
const CURVE: f64 = 150.0;

pub struct Plot {
    body: String,
    y: f64,
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

impl Plot {
    pub fn new() -> Self {
        Self {
            body: String::new(),
            y: 10.0,
        }
    }

    fn text(&mut self, x: f64, y: f64, class: &str, text: &str) {
        let text = escaped(text);
        let _ = writeln!(
            self.body,
            r#"<text x="{x:.1}" y="{y:.1}" class="{class}">{text}</text>"#
        );
    }

    fn title(&mut self, title: &str) {
        self.y += 22.0;
        self.text(10.0, self.y, "title", title);
        self.y += 12.0;
    }

    /// Bars of medians, in nanoseconds.
    pub fn bars(&mut self, title: &str, samples: &[Sample]) {
        self.title(title);
        let most = samples.iter().map(Sample::median).fold(1.0, f64::max);
        let room = WIDTH - LABEL - 110.0;
        for sample in samples {
            let median = sample.median();
            let length = (median.max(1.0).ln() / most.ln().max(1.0) * room).max(1.0);
            let class = if sample.name.starts_with("backstop") {
                "ours"
            } else {
                "bar"
            };
            self.text(10.0, self.y + 14.0, "label", sample.name);
            let _ = writeln!(
                self.body,
                r#"<rect x="{LABEL}" y="{:.1}" width="{length:.1}" height="{:.1}" class="{class}"/>"#,
                self.y + 2.0,
                BAR - 6.0
            );
            let figure = if median >= 1000.0 {
                format!("{:.2} µs", median / 1000.0)
            } else {
                format!("{median:.1} ns")
            };
            self.text(LABEL + length + 6.0, self.y + 14.0, "label", &figure);
            self.y += BAR;
        }
    }

    /// One small chart beside another, two in a row.
    pub fn curves(&mut self, curves: &[Curve]) {
        for pair in curves.chunks(2) {
            self.y += 10.0;
            for (at, curve) in pair.iter().enumerate() {
                self.curve(10.0 + at as f64 * WIDTH / 2.0, curve);
            }
            self.y += CURVE + 40.0;
        }
    }

    fn curve(&mut self, left: f64, curve: &Curve) {
        let (width, top) = (WIDTH / 2.0 - 40.0, self.y + 22.0);
        let head = format!("{}, {} (by {})", curve.name, curve.unit, curve.of);
        self.text(left, self.y + 12.0, "label strong", &head);
        let xs: Vec<f64> = curve
            .points
            .iter()
            .map(|(size, _)| (*size as f64).ln())
            .collect();
        let ys: Vec<f64> = curve
            .points
            .iter()
            .map(|(_, value)| value.max(1e-3).ln())
            .collect();
        let range = |values: &[f64], least: f64| {
            let low = values.iter().copied().fold(f64::INFINITY, f64::min);
            let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let middle = (low + high) / 2.0;
            let half = ((high - low) / 2.0).max(least);
            (middle - half, middle + half)
        };
        let ((x0, x1), (y0, y1)) = (range(&xs, 0.5), range(&ys, 1.2));
        let place = |x: f64, y: f64| {
            (
                left + 10.0 + (x - x0) / (x1 - x0) * (width - 60.0),
                top + CURVE - 20.0 - (y - y0) / (y1 - y0) * (CURVE - 50.0),
            )
        };
        let _ = writeln!(
            self.body,
            r#"<rect x="{left:.1}" y="{top:.1}" width="{width:.1}" height="{CURVE}" class="frame"/>"#
        );
        let points: Vec<_> = xs.iter().zip(&ys).map(|(x, y)| place(*x, *y)).collect();
        let line: Vec<_> = points
            .iter()
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let _ = writeln!(
            self.body,
            r#"<polyline points="{}" class="line"/>"#,
            line.join(" ")
        );
        for ((x, y), (size, value)) in points.into_iter().zip(&curve.points) {
            let _ = writeln!(
                self.body,
                r#"<circle cx="{x:.1}" cy="{y:.1}" r="3" class="ours"/>"#
            );
            let digits = usize::from(*value < 10.0) * 2;
            self.text(x, y - 7.0, "label", &format!("{value:.digits$}"));
            self.text(x, top + CURVE - 4.0, "small", &size.to_string());
        }
    }

    pub fn finish(self) -> String {
        let height = self.y + 20.0;
        format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0}" font-family="sans-serif">
<style>
text {{ fill: #24292f }} .title {{ font-size: 15px; font-weight: bold }} .label {{ font-size: 12px }}
.strong {{ font-weight: bold }} .small {{ font-size: 10px }} .ours {{ fill: #0b6e4f }} .bar {{ fill: #a0a8b0 }}
.frame {{ fill: none; stroke: #d0d7de }} .line {{ fill: none; stroke: #0b6e4f; stroke-width: 2 }}
</style>
<rect width="100%" height="100%" fill="white"/>
{}</svg>
"#,
            self.body
        )
    }
}
