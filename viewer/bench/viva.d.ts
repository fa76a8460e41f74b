declare module 'vivagraphjs' {
  interface Layout {
    step(): boolean;
    getNodePosition(id: number): { x: number; y: number };
  }
  interface Graphics {
    node(make: (node: { id: number }) => SVGElement): Graphics;
    placeNode(place: (ui: SVGElement, at: { x: number; y: number }) => void): Graphics;
  }
  interface Graph {
    addNode(id: number): void;
    addLink(a: number, b: number): void;
  }
  const Viva: {
    Graph: {
      graph(): Graph;
      svg(tag: string): SVGElement;
      Layout: { forceDirected(graph: Graph): Layout };
      View: {
        svgGraphics(): Graphics;
        renderer(
          graph: Graph,
          options: { layout: Layout; graphics: Graphics; container: HTMLElement },
        ): { run(): void };
      };
    };
  };
  export default Viva;
}
