//! A plot with two logarithmic axes, as SVG.
//!
//! Knows nothing of what it shows. It has a background of its own, so that it can be read on light and on dark pages.

use std::ops::Range;

use anyhow::{Result, ensure};
use plotters::chart::ChartBuilder;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{Circle, Cross, PathElement, Text, TriangleMarker};
use plotters::prelude::SVGBackend;
use plotters::style::{BLACK, Color, IntoFont, RGBColor, ShapeStyle, WHITE};

const SIZE: (u32, u32) = (1000, 540);
/// Where the names of curves stand, right of what they name.
const LEGEND_WIDTH: u32 = 300;
const LEGEND_LINE: i32 = 22;
const FONT: &str = "sans-serif";

/// Colours that the colour-blind tell apart (Okabe and Ito), but for those that are too light on white.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

/// Curves over logarithmic axes.
#[derive(Debug)]
pub(super) struct Plot {
    pub(super) title: String,
    /// The axes' names, with units.
    pub(super) x: &'static str,
    pub(super) y: &'static str,
    pub(super) curves: Vec<Curve>,
}

/// Points above zero that belong together.
#[derive(Debug)]
pub(super) struct Curve {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
    pub(super) look: Look,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Look {
    /// Marks alone.
    Points,
    /// Marks and a line through them.
    Line,
    /// A black line without marks: a limit.
    Roof,
}

impl Plot {
    /// Draws it.
    ///
    /// # Errors
    /// If there is no point, or one that has no logarithm.
    pub(super) fn to_svg(&self) -> Result<String> {
        let points = || self.curves.iter().flat_map(|curve| &curve.points);
        ensure!(points().next().is_some(), "`{}` has no points", self.title);
        let is_positive = |number: f64| number > 0.0 && number.is_finite();
        let odd = points().find(|(x, y)| !is_positive(*x) || !is_positive(*y));
        ensure!(odd.is_none(), "`{}` has the point {odd:?}, which has no logarithm", self.title);
        let x = LogAxis::over(points().map(|(x, _)| *x));
        let y = LogAxis::over(points().map(|(_, y)| *y));

        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            area.fill(&WHITE)?;
            let (chart, legend) = area.split_horizontally(SIZE.0 - LEGEND_WIDTH);
            self.draw(&chart, x, y)?;
            self.draw_legend(&legend)?;
            area.present()?;
        }
        Ok(svg)
    }

    fn draw(&self, area: &Area<'_>, x: LogAxis, y: LogAxis) -> Result<()> {
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, (FONT, 20))
            .margin(12)
            .x_label_area_size(48)
            .y_label_area_size(72)
            .build_cartesian_2d(x, y)?;
        chart
            .configure_mesh()
            .x_desc(self.x)
            .y_desc(self.y)
            .axis_desc_style((FONT, 15))
            .label_style((FONT, 13))
            .x_label_formatter(&|x| label(*x))
            .y_label_formatter(&|y| label(*y))
            .light_line_style(WHITE)
            .draw()?;
        for (i, curve) in self.curves.iter().enumerate() {
            let style = style(i, curve.look);
            if curve.look != Look::Points {
                chart.draw_series([PathElement::new(curve.points.clone(), style)])?;
            }
            if curve.look != Look::Roof {
                let marks = curve.points.iter();
                match Mark::of(i) {
                    Mark::Circle => {
                        chart.draw_series(marks.map(|at| Circle::new(*at, 4, style.filled())))?;
                    }
                    Mark::Triangle => {
                        let marks = marks.map(|at| TriangleMarker::new(*at, 6, style.filled()));
                        chart.draw_series(marks)?;
                    }
                    Mark::Cross => {
                        chart.draw_series(marks.map(|at| Cross::new(*at, 4, style)))?;
                    }
                }
            }
        }
        Ok(())
    }

    fn draw_legend(&self, area: &Area<'_>) -> Result<()> {
        for ((i, curve), y) in
            self.curves.iter().enumerate().zip((60..).step_by(LEGEND_LINE as usize))
        {
            let style = style(i, curve.look);
            if curve.look != Look::Points {
                area.draw(&PathElement::new([(4, y), (24, y)], style))?;
            }
            if curve.look != Look::Roof {
                match Mark::of(i) {
                    Mark::Circle => area.draw(&Circle::new((14, y), 4, style.filled()))?,
                    Mark::Triangle => {
                        area.draw(&TriangleMarker::new((14, y), 6, style.filled()))?;
                    }
                    Mark::Cross => area.draw(&Cross::new((14, y), 4, style))?,
                }
            }
            area.draw(&Text::new(&*curve.name, (32, y - 7), (FONT, 14).into_font()))?;
        }
        Ok(())
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// What stands at a point. Together with the colours there are eighteen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Mark {
    Circle,
    Triangle,
    Cross,
}

impl Mark {
    fn of(curve: usize) -> Self {
        // The colours begin anew with another mark.
        match (curve + curve / COLOURS.len()) % 3 {
            0 => Self::Circle,
            1 => Self::Triangle,
            _ => Self::Cross,
        }
    }
}

fn style(curve: usize, look: Look) -> ShapeStyle {
    let colour = if look == Look::Roof { BLACK } else { COLOURS[curve % COLOURS.len()] };
    colour.stroke_width(2)
}

/// An axis whose equal lengths are equal ratios.
struct LogAxis(Range<f64>);

impl LogAxis {
    /// An axis with room around these numbers.
    fn over(numbers: impl Iterator<Item = f64> + Clone) -> Self {
        let first = numbers.clone().fold(f64::INFINITY, f64::min);
        let last = numbers.fold(0.0, f64::max);
        Self(first / 1.5..last * 1.5)
    }
}

impl Ranged for LogAxis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    #[expect(clippy::cast_possible_truncation, reason = "pixels")]
    fn map(&self, value: &f64, (first, last): (i32, i32)) -> i32 {
        let share = (value / self.0.start).ln() / (self.0.end / self.0.start).ln();
        first + (share * f64::from(last - first)).round() as i32
    }

    /// Powers of ten; with their double and fivefold, if there is room for labels.
    #[expect(clippy::cast_possible_truncation, reason = "an exponent of a float is small")]
    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        let powers = self.0.start.log10().floor() as i32..=self.0.end.log10().ceil() as i32;
        let points = |steps: &'static [f64]| {
            let all = powers
                .clone()
                .flat_map(|power| steps.iter().map(move |step| step * 10f64.powi(power)));
            all.filter(|point| self.0.contains(point)).collect::<Vec<_>>()
        };
        let fine = points(&[1.0, 2.0, 5.0]);
        if fine.len() <= hint.max_num_points().min(12) { fine } else { points(&[1.0]) }
    }

    fn range(&self) -> Range<f64> {
        self.0.clone()
    }
}

/// A number at an axis: `0.5`, `200`, `10⁶`.
fn label(number: f64) -> String {
    if (0.001..100_000.0).contains(&number) {
        // The digits of products such as 5 · 0.1.
        return format!("{}", (number * 1e6).round() / 1e6);
    }
    let text = format!("{number:.0e}");
    let (digit, power) = text.split_once('e').unwrap_or((&text, "0"));
    let superscript = |c: char| match c {
        '-' => '⁻',
        _ => ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'][c as usize - '0' as usize],
    };
    let power: String = power.chars().map(superscript).collect();
    if digit == "1" { format!("10{power}") } else { format!("{digit}·10{power}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(curves: Vec<Curve>) -> Plot {
        Plot { title: "Speed & cost".into(), x: "length (tokens)", y: "time (s)", curves }
    }

    fn curve(look: Look, points: &[(f64, f64)]) -> Curve {
        Curve { name: format!("{look:?} <n>"), points: points.to_vec(), look }
    }

    /// An attribute of every element of a kind, as numbers.
    fn attributes(svg: &str, element: &str, name: &str) -> Vec<f64> {
        let (element, name) = (format!("<{element} "), format!("{name}=\""));
        let values = svg.split(&element).skip(1).map(|rest| rest.split_once(&name).unwrap().1);
        values.map(|rest| rest.split('"').next().unwrap().parse().unwrap()).collect()
    }

    #[test]
    fn eighteen_curves_look_different() {
        let looks = (0..18).map(|curve| (curve % COLOURS.len(), Mark::of(curve)));
        assert_eq!(looks.collect::<std::collections::BTreeSet<_>>().len(), 18);
    }

    #[test]
    fn what_is_drawn_is_named() {
        let curves = vec![
            curve(Look::Line, &[(1.0, 1e-6), (100.0, 1e-3)]),
            curve(Look::Points, &[(10.0, 1e-4)]),
            curve(Look::Roof, &[(1.0, 1e-2), (100.0, 1e-2)]),
        ];
        let svg = plot(curves).to_svg().unwrap();
        let texts: Vec<&str> =
            svg.split("</text>").filter_map(|text| text.rsplit('>').next()).collect();
        let has = |text: &str| texts.iter().any(|found| found.trim() == text);
        for text in ["Speed &amp; cost", "length (tokens)", "time (s)"] {
            assert!(has(text), "{text}: {texts:?}");
        }
        for look in ["Line", "Points", "Roof"] {
            assert!(has(&format!("{look} &lt;n&gt;")), "{look}: {texts:?}");
        }
        for label in ["1", "10", "100", "10⁻⁶", "0.01"] {
            assert!(has(label), "{label}: {texts:?}");
        }
        // The whole is white below.
        let first = svg.split("<rect ").nth(1).unwrap();
        assert!(
            first.contains(r#"width="1000" height="540""#) && first.contains(r##"fill="#FFFFFF""##)
        );
        // The line's two points and one in the legend; a triangle of the points', and in the legend.
        assert_eq!(attributes(&svg, "circle", "cx").len(), 3);
        assert_eq!(svg.matches("<polygon ").count(), 2);
    }

    #[test]
    fn equal_ratios_are_equal_lengths() {
        let points = [(1.0, 1.0), (10.0, 100.0), (100.0, 10_000.0)];
        let svg = plot(vec![curve(Look::Points, &points)]).to_svg().unwrap();
        let (x, y) = (attributes(&svg, "circle", "cx"), attributes(&svg, "circle", "cy"));
        assert!((x[0] + x[2] - 2.0 * x[1]).abs() <= 1.0 && x[2] - x[0] > 300.0, "{x:?}");
        assert!((y[0] + y[2] - 2.0 * y[1]).abs() <= 1.0 && y[0] - y[2] > 200.0, "{y:?}");
    }

    #[test]
    fn what_has_no_logarithm_is_refused() {
        let error =
            |points: &[_]| plot(vec![curve(Look::Line, points)]).to_svg().unwrap_err().to_string();
        assert_eq!(error(&[]), "`Speed & cost` has no points");
        for point in [(0.0, 1.0), (1.0, -1.0), (f64::INFINITY, 1.0), (1.0, f64::NAN)] {
            assert!(error(&[(1.0, 1.0), point]).contains("which has no logarithm"));
        }
    }

    #[test]
    fn labels_are_short() {
        for (number, expected) in [
            (5.0 * 0.1, "0.5"),
            (2e4, "20000"),
            (1e5, "10⁵"),
            (2e9, "2·10⁹"),
            (1e-6, "10⁻⁶"),
            (0.002, "0.002"),
        ] {
            assert_eq!(label(number), expected);
        }
    }
}
