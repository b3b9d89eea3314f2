export default function Home({ number }) { return <main><h1>Number {number}</h1></main>; }
export const getStaticProps = () => ({ props: { number: 42 } });
