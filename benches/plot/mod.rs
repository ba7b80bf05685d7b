//! Plots of what benchmarks measured: panels beside each other, as SVG.

const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 230.0;
const LEFT: f64 = 50.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = TOP + HEIGHT;
/// From one panel to the next.
const PITCH: f64 = WIDTH + 70.0;

/// Figures over another quantity.
pub struct Line {
    pub name: &'static str,
    pub colour: &'static str,
    pub points: Vec<(f64, f64)>,
}

pub struct Panel {
    pub title: String,
    /// What stands across, with its unit.
    pub across: &'static str,
    /// Its first line's points are named below it.
    pub lines: Vec<Line>,
    /// The figure at the top.
    pub most: f64,
}

/// The panels, and the names of the first one's lines below them.
pub fn picture(panels: &[Panel]) -> String {
    let drawn = panels.iter().enumerate().map(|(index, panel)| panel.draw(LEFT + PITCH * index as f64));
    let named = panels.iter().take(1).flat_map(|panel| &panel.lines).filter(|line| !line.name.is_empty());
    let names = named.enumerate().map(|(index, Line { name, colour, .. })| {
        let (x, y) = (LEFT + 150.0 * index as f64, BOTTOM + 50.0);
        format!("<text x=\"{x}\" y=\"{y}\" fill=\"{colour}\">{name}</text>\n")
    });
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{}{}</svg>\n",
        PITCH * panels.len() as f64,
        BOTTOM + 60.0,
        drawn.collect::<String>(),
        names.collect::<String>()
    )
}

impl Panel {
    fn draw(&self, left: f64) -> String {
        let (right, foot) = (left + WIDTH, BOTTOM + 32.0);
        let furthest = self.lines.iter().flat_map(|line| &line.points).fold(0.0, |most, (x, _)| x.max(most));
        let place =
            |&(x, y): &(f64, f64)| (left + x / (furthest * 1.05) * WIDTH, BOTTOM - y / self.most * HEIGHT);
        let mut svg = format!(
            "<text x=\"{left}\" y=\"18\" font-weight=\"bold\">{}</text>\n\
             <path d=\"M{left} {TOP}V{BOTTOM} H{right}\" fill=\"none\" stroke=\"black\"/>\n\
             <text x=\"{right}\" y=\"{foot}\" text-anchor=\"end\">{}</text>\n",
            self.title, self.across
        );
        for quarter in 1..=4 {
            let figure = self.most * f64::from(quarter) / 4.0;
            let (x, (_, y)) = (left - 5.0, place(&(0.0, figure)));
            let digits = usize::from(self.most < 20.0);
            svg += &format!("<text x=\"{x}\" y=\"{y:.1}\" text-anchor=\"end\">{figure:.digits$}</text>\n");
        }
        // Names of places that nearly coincide would cover each other.
        let mut named = f64::NEG_INFINITY;
        for point in self.lines.iter().take(1).flat_map(|line| &line.points) {
            let (x, y) = (place(point).0, BOTTOM + 14.0);
            if x - named > 25.0 {
                svg +=
                    &format!("<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{:.0}</text>\n", point.0);
                named = x;
            }
        }
        for Line { colour, points, .. } in &self.lines {
            let places: Vec<(f64, f64)> = points.iter().map(place).collect();
            let path: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let path = path.join(" ");
            svg += &format!("<polyline points=\"{path}\" fill=\"none\" stroke=\"{colour}\"/>\n");
            for (x, y) in places {
                svg += &format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/>\n");
            }
        }
        svg
    }
}
